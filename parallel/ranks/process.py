"""This process among the others: who it is, and joining and leaving them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.errors import TandemError
from parallel.ranks.cuda_environment import cuda_environment_advice, prepare_cuda_environment
from parallel.ranks.environment import STORE, place_from_environment
from parallel.ranks.fresh_store import fresh_store
from parallel.ranks.roll_call import RollCall

_FULL_MESH = 64  # ranks that gloo connects all with each other: a rank that hangs is found sooner


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
        """As torchrun set it; the only process where nothing is set. Raises LaunchError."""
        place = place_from_environment()
        return cls() if place is None else cls(*place)

    def device(self, wanted: str) -> torch.device:
        """wanted: "cpu", "cuda", or "auto": CUDA where each local process can have a GPU."""
        if wanted == "cpu":
            return torch.device("cpu")
        prepare_cuda_environment()
        enough = torch.cuda.is_available() and torch.cuda.device_count() >= self.local_world
        if wanted == "auto" and not enough:
            return torch.device("cpu")
        if not enough:
            raise DeviceError(
                f"run.device is cuda, but {self.local_world} processes share "
                f"{torch.cuda.device_count()} GPUs here: set run.device to cpu or start fewer"
            )
        return torch.device("cuda", self.local_rank)


def join(process: Process, device: torch.device, timeout: timedelta, init_method: str) -> RollCall:
    """Make the world's process group, if there is more than one process.

    Returns the roll call, which says who is missing when a collective fails.
    """
    if device.type == "cuda":
        for line in cuda_environment_advice(os.environ) if process.rank == 0 else ():
            warnings.warn(line, stacklevel=2)
        torch.cuda.set_device(device)
        # NCCL's own flight recorder: the last collectives of each rank, written on a timeout.
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if process.world == 1:
        return RollCall(None, 0, 1)
    if process.world > _FULL_MESH:  # else gloo opens as many sockets as there are ranks, per group
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    store = _store(process, timeout, init_method)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("world", store),
        rank=process.rank,
        world_size=process.world,
        timeout=timeout,
    )
    # torchrun's agent serves the store of its ranks; else the first of them does.
    host = None if _agent_serves() else 0
    return RollCall(dist.PrefixStore("roll_call", store), process.rank, process.world, host)


def _store(process: Process, timeout: timedelta, init_method: str) -> dist.Store:
    """The store in which ranks find each other."""
    descriptor = os.environ.get(STORE)
    if descriptor is None:
        found = dist.rendezvous(init_method, process.rank, process.world, timeout=timeout)
        store: dist.Store = next(iter(found))[0]
        if _agent_serves():
            return fresh_store(store, process.rank, process.world, timeout)
        return store
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        process.world,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=int(descriptor),
    )


def _agent_serves() -> bool:
    """Whether torchrun's agent serves the store, to all starts of its job."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def leave() -> None:
    """Destroy all process groups, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
