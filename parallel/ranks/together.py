"""An error on one rank is an error on all: for work that ranks do separately but all must do."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import AllgatherOptions

from parallel.errors import TandemError

T = TypeVar("T")


class PeerError(TandemError):
    """Another rank failed; the message says which and why."""


def gather(value: Any, patience: timedelta | None = None) -> list[Any]:
    """Every rank's value, by rank, on every rank. patience: how long the slowest rank may take to
    come; where not given, as long as a collective in training. Collective over the world."""
    if not dist.is_initialized():
        return [value]
    mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sizes = [int(size) for size in _all_gather(torch.tensor([len(mine)]), patience)]
    row = torch.zeros(max(sizes), dtype=torch.uint8)
    row[: len(mine)] = mine
    rows = _all_gather(row, patience)
    return [pickle.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes)]


def together(action: Callable[[], T], patience: timedelta | None = None) -> T:
    """Do this rank's part. If it fails on any rank, raise on all: there its own error, elsewhere
    PeerError. patience: how long the slowest rank's part may take, as in `gather`. Collective over
    the world.
    """
    try:
        result = action()
    except Exception as error:
        gather(f"{error}", patience)
        raise
    for rank, problem in enumerate(gather(None, patience)):
        if problem is not None:
            raise PeerError(f"rank {rank}: {problem}")
    return result


def of_first(action: Callable[[], T], patience: timedelta | None = None) -> T:
    """What the first rank's `action` returns, on every rank; the others do not call it. Raises, and
    is collective, as `together` is; patience: for the first rank."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    box = [together(lambda: action() if first else None, patience)]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def start_together(group: dist.ProcessGroup | None = None, delay: float = 0.02) -> float:
    """Sleep until the same moment on all ranks of `group`, at least `delay` seconds from now.

    Returns it, in seconds of time.monotonic. Collective.
    """
    start = torch.tensor([time.monotonic() + delay], dtype=torch.float64)
    dist.all_reduce(start, dist.ReduceOp.MAX, group=group)
    time.sleep(max(0.0, start.item() - time.monotonic()))
    return start.item()


def _all_gather(mine: Tensor, patience: timedelta | None) -> list[Tensor]:
    """dist.all_gather over the world, which takes no timeout."""
    options = AllgatherOptions()
    if patience is not None:
        options.timeout = patience
    world = dist.group.WORLD
    assert world is not None
    everyone = [torch.empty_like(mine) for _ in range(world.size())]
    world.allgather([everyone], [mine], options).wait()
    return everyone
