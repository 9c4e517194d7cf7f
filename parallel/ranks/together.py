"""An error on one rank is an error on all: for work that ranks do separately but all must do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from parallel.errors import TandemError

T = TypeVar("T")


class PeerError(TandemError):
    """Another rank failed; the message says which and why."""


def gather(value: Any, patient: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value, by rank, on every rank. patient: as in `together`."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=patient)
    return values


def together(action: Callable[[], T], patient: dist.ProcessGroup | None = None) -> T:
    """Do this rank's part. If it fails on any rank, raise on all: there its own error, elsewhere
    PeerError. Collective over the world.

    patient: a group of the whole world whose timeout covers the slowest rank's part, as
    `patient_world` makes it; without one, the world's own timeout does.
    """
    try:
        result = action()
    except Exception as error:
        gather(f"{error}", patient)
        raise
    for rank, problem in enumerate(gather(None, patient)):
        if problem is not None:
            raise PeerError(f"rank {rank}: {problem}")
    return result


def start_together(group: dist.ProcessGroup | None = None, delay: float = 0.02) -> float:
    """Sleep until the same moment on all ranks of `group`, at least `delay` seconds from now.

    Returns it, in seconds of time.monotonic. Collective.
    """
    start = torch.tensor([time.monotonic() + delay], dtype=torch.float64)
    dist.all_reduce(start, dist.ReduceOp.MAX, group=group)
    time.sleep(max(0.0, start.item() - time.monotonic()))
    return start.item()
