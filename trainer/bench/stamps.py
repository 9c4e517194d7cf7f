"""Moments of a step: by the host's clock on a CPU, by events of a GPU's streams on CUDA."""

from __future__ import annotations

import time
from typing import Protocol, TypeAlias, runtime_checkable

import torch

Stamp: TypeAlias = "float | torch.cuda.Event"


@runtime_checkable
class Followed(Protocol):
    """A collective that a stream can wait for, besides the one that needs its results."""

    def follow(self) -> None:
        """Make the current stream wait until it is done."""


def stamp(device: torch.device) -> Stamp:
    """Now: seconds of the host's clock, or an event of the current stream of a GPU."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(first: Stamp, second: Stamp) -> float:
    """Of events only when both have happened."""
    if isinstance(first, float) and isinstance(second, float):
        return second - first
    assert isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event)
    return first.elapsed_time(second) / 1e3


class Arrivals:
    """A stream that waits for collectives and for nothing else, to see when each is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def stamp(self, pending: Followed) -> Stamp:
        """When it is done. The host does not wait."""
        with torch.cuda.stream(self._stream):
            pending.follow()
            return stamp(self._device)
