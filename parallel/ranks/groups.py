"""Process groups: each rank makes those that it is in, and no other.

Groups are made in turns. Those of one turn share no rank, every rank makes exactly one group per
turn (of itself alone where it is in none), and all ranks know all turns. So no two ranks can wait
for each other in different groups, and a group has one name on all of its ranks: torch derives it
from the ranks and from how many groups a rank has made before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist

from parallel.ranks.mesh import RankSet, few

Turn: TypeAlias = dict[int, "GroupSpec"]
"""By world rank, the group that it makes; ranks that are in none are left out."""


@dataclass(frozen=True)
class GroupSpec:
    """A group to be made.

    ranks: at least two world ranks. purpose: for people, and so that the same ranks can have
    several groups. serves: what it is used for, of which a tiny one opens it: a channel carries
    messages from its first rank to its second. sms: with NCCL, its collectives go before other work
    of the GPU (a stream of high priority), on so many multiprocessors at most, 0 for NCCL's own
    choice; None: neither.
    """

    ranks: RankSet
    purpose: str
    serves: Literal["all-reduce", "all-to-all", "message"]
    sms: int | None = None

    def __str__(self) -> str:
        return f"the group for {self.purpose} of ranks {few(self.ranks)}"


class OpeningError(RuntimeError):
    """A group could not be made or used. what: the group, for people."""

    def __init__(self, what: str, error: RuntimeError) -> None:
        super().__init__(f"{what} does not open: {error}")
        self.what = what


def turns(specs: Iterable[GroupSpec]) -> list[Turn]:
    """Each group in the first turn in which none of its ranks makes another, in the order of
    `specs`; groups of one rank are left out."""
    busy: dict[int, int] = {}  # by rank, the turns in which it makes a group, as bits
    planned: list[Turn] = []
    for spec in dict.fromkeys(specs):
        if len(spec.ranks) < 2:
            continue
        taken = 0
        for rank in spec.ranks:
            taken |= busy.get(rank, 0)
        turn = (~taken & (taken + 1)).bit_length() - 1  # the lowest bit that is not set
        if turn == len(planned):
            planned.append({})
        for rank in spec.ranks:
            busy[rank] = busy.get(rank, 0) | 1 << turn
            planned[turn][rank] = spec
    return planned


def open_groups(
    specs: Iterable[GroupSpec], rank: int, timeout: timedelta, device: torch.device
) -> Mapping[GroupSpec, dist.ProcessGroup]:
    """Make the groups that `rank` is in, and open each at once: NCCL makes a communicator at the
    first use, and blocks the host until all of its ranks have come.

    They serve tensors of `device` only. Collective over the world: every rank must pass the same
    specs in the same order. Raises OpeningError.
    """
    opened: dict[GroupSpec, dist.ProcessGroup] = {}
    planned = turns(specs)
    if not planned:
        return opened
    everyone = GroupSpec(tuple(range(dist.get_world_size())), "everything", "all-reduce")
    _warm_up(everyone, None, rank, device)
    for turn in planned:
        spec = turn.get(rank)
        if spec is None:
            _make((rank,), timeout, device, "an empty turn")
            continue
        try:
            group = _make(spec.ranks, timeout, device, spec.purpose, spec.sms)
        except RuntimeError as error:
            raise OpeningError(str(spec), error) from error
        _warm_up(spec, group, rank, device)
        opened[spec] = group
    return opened


def second_world(timeout: timedelta) -> dist.ProcessGroup | None:
    """Another group of the whole world, of CPU tensors, for a thread of its own; None where there
    is one process. Collective over the world."""
    if not dist.is_initialized():
        return None
    return _make(tuple(range(dist.get_world_size())), timeout, torch.device("cpu"), "a thread")


def group_of_one(rank: int, device: torch.device) -> dist.ProcessGroup:
    """A group of this rank alone. Collective over the world, since the next groups count it."""
    return _make((rank,), None, device, "one rank")


def started(work: dist.Work | None) -> dist.Work:
    """The work of a collective or a message that a member of its group has started."""
    if work is None:
        raise ValueError("a rank started a collective in a process group that it is not in")
    return work


def nccl_options(sms: int) -> dist.ProcessGroupNCCL.Options:
    """Of a group with the `sms` of a GroupSpec. NCCL counts blocks (CTAs), one for each
    multiprocessor."""
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    if sms:
        options.config.max_ctas = sms
    return options


def _make(
    ranks: RankSet,
    timeout: timedelta | None,
    device: torch.device,
    purpose: str,
    sms: int | None = None,
) -> dist.ProcessGroup:
    """With what connects tensors of the device in the world: gloo, NCCL, or torch's fake one."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    backend = backends[device.type]
    group = dist.new_group(
        list(ranks),
        timeout=timeout,
        backend=backend,
        pg_options=nccl_options(sms) if backend == "nccl" and sms is not None else None,
        use_local_synchronization=True,
        group_desc=purpose,
    )
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"this rank is not among ranks {few(ranks)}")
    return group


def _warm_up(
    spec: GroupSpec, group: dist.ProcessGroup | None, rank: int, device: torch.device
) -> None:
    """Use a group for the first time. group: None is the world's."""
    one_each = torch.zeros(len(spec.ranks), device=device)
    try:
        if spec.serves == "all-reduce":
            dist.all_reduce(one_each[:1], group=group)
        elif spec.serves == "all-to-all":
            dist.all_to_all_single(torch.empty_like(one_each), one_each, group=group)
        elif rank == spec.ranks[0]:
            started(dist.isend(one_each, spec.ranks[1], group=group)).wait()
        else:
            started(dist.irecv(one_each, spec.ranks[0], group=group)).wait()
    except RuntimeError as error:
        raise OpeningError(str(spec), error) from error
