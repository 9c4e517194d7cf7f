"""Collectives and messages of a dry run: noted, and answered as if all ranks did the same.

What arrives is what this rank would send to itself: the sum of n equal tensors, n copies of one. So
numbers that are known (see values.py) stay known, and sizes that ranks tell each other agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.mesh import RankSet
from trainer.dry.values import known, set_known


class Started(NamedTuple):
    """A collective or a message, as torch.distributed starts one.

    kind: see Call. sent, received: tensors. splits: of an all-to-all, rows by rank, (sent,
    received). peer: of a message, as numbered in the group. answer: what the operation returns,
    before its work.
    """

    kind: str
    group: RankSet
    sent: tuple[Tensor, ...]
    received: tuple[Tensor, ...]
    splits: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    peer: int | None = None
    answer: Any = None


def read(func: Any, args: Sequence[Any]) -> Started:
    """An operation of torch's namespace c10d. NotImplementedError: no run uses it."""
    name = func._schema.name.removeprefix("c10d::")
    group = dist.ProcessGroup.unbox(next(a for a in args if isinstance(a, torch.ScriptObject)))
    ranks: RankSet = tuple(dist.get_process_group_ranks(group))
    first = args[0]
    if name == "allreduce_":
        return Started("all-reduce", ranks, tuple(first), tuple(first), answer=first)
    if name == "broadcast_":
        return Started("broadcast", ranks, tuple(first), tuple(first), answer=first)
    if name == "allgather_":
        return Started("all-gather", ranks, tuple(args[1]), tuple(first[0]), answer=first)
    if name == "_allgather_base_":
        return Started("all-gather", ranks, (args[1],), (first,), answer=first)
    if name == "_reduce_scatter_base_":
        return Started("reduce-scatter", ranks, (args[1],), (first,), answer=first)
    if name == "alltoall_base_":
        even = (len(args[1]) // len(ranks),) * len(ranks)
        splits = tuple(args[4]) or even, tuple(args[3]) or even
        return Started("all-to-all", ranks, (args[1],), (first,), splits)
    if name == "send":
        return Started("send", ranks, tuple(first), (), peer=args[2])
    if name == "recv_":
        return Started("receive", ranks, (), tuple(first), peer=args[2])
    if name == "barrier":
        return Started("barrier", ranks, (), ())
    raise NotImplementedError(f"a dry run does not know the collective {func}")


def arrive(started: Started, me: int) -> None:
    """Set what arrives at rank `me` of the group."""
    if started.kind == "receive":
        for tensor in started.received:
            _set(tensor, None)
        return
    if started.kind == "broadcast":
        return
    for position, into in enumerate(started.received):
        source = started.sent[min(position, len(started.sent) - 1)]
        numbers = known(source)
        _set(into, None if numbers is None else _arrives(started, numbers, me))


def _arrives(started: Started, numbers: Tensor, me: int) -> Tensor | None:
    ranks = len(started.group)
    if started.kind == "all-reduce":
        return numbers * ranks  # a sum; no run takes another
    if started.kind == "reduce-scatter":
        return numbers.view(ranks, -1)[me] * ranks
    if started.kind == "all-to-all":
        rows, mine = started.splits[0], sum(started.splits[0][:me])
        own = numbers[mine : mine + rows[me]]
        agreed = started.splits[1] == (len(own),) * ranks
        return own.repeat(ranks, *(1,) * (own.ndim - 1)) if agreed else None
    if len(started.received) > 1:
        return numbers  # an all-gather into one tensor for each rank
    return numbers.repeat(ranks, *(1,) * (numbers.ndim - 1))


def _set(into: Tensor, numbers: Tensor | None) -> None:
    if into.device.type == "cpu" and known(into) is into:
        if numbers is not None:
            into.copy_(numbers.view_as(into))
    else:
        set_known(into, numbers)
