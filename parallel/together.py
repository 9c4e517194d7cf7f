"""An error on one rank is an error on all: for what ranks do apart and must all have done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank failed; the message says which and why."""


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(action: Callable[[], T]) -> T:
    """Do this rank's part. If it fails on any rank, raise on all: there its own error, elsewhere
    PeerError. Collective over the world."""
    try:
        result = action()
    except Exception as error:
        gather(f"{error}")
        raise
    for rank, problem in enumerate(gather(None)):
        if problem is not None:
            raise PeerError(f"rank {rank}: {problem}")
    return result
