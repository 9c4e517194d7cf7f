"""This process among the others: who it is, and joining and leaving them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.errors import TandemError


class DeviceError(TandemError):
    """The device that was asked for is not there; the message is one line."""


@dataclass(frozen=True)
class Process:
    """A rank of the world, and its number on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> Process:
        """As torchrun set it; the only process where nothing is set."""
        numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        defaults = (0, 1, 0, 1)
        return cls(*(int(os.environ.get(n, d)) for n, d in zip(numbers, defaults)))

    def device(self, wanted: str) -> torch.device:
        """wanted: "cpu", "cuda", or "auto": CUDA where each local process can have a GPU."""
        enough = torch.cuda.is_available() and torch.cuda.device_count() >= self.local_world
        if wanted == "cpu" or (wanted == "auto" and not enough):
            return torch.device("cpu")
        if not enough:
            raise DeviceError(
                f"run.device is cuda, but {self.local_world} processes share "
                f"{torch.cuda.device_count()} GPUs here: set run.device to cpu or start fewer"
            )
        return torch.device("cuda", self.local_rank)


def join(process: Process, device: torch.device, timeout: timedelta, init_method: str) -> None:
    """Make the world's process group, if there is more than one process."""
    if device.type == "cuda":
        # One connection lets a communication kernel block computation that could hide it
        # (Megatron-LM PR 6429: overlap gains 3.7 % with 1, 7.8 % with 32).
        connections = os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
        if connections == "1" and process.rank == 0:
            advice = "CUDA_DEVICE_MAX_CONNECTIONS=1 throttles overlap: set it to 32"
            warnings.warn(advice, stacklevel=2)
        torch.cuda.set_device(device)
    if process.world > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            init_method=init_method,
            rank=process.rank,
            world_size=process.world,
            timeout=timeout,
        )


def leave() -> None:
    """Destroy all process groups, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
