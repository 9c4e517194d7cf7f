"""Process groups: one for each set of ranks that talks, made in one order on all ranks.

torch gives a rank that is outside of a group neither the group nor the work of its collectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch.distributed as dist

from parallel.ranks.mesh import RankSet


def make_groups(
    rank_sets: Iterable[RankSet], rank: int, timeout: timedelta, backend: str | None = None
) -> Mapping[RankSet, dist.ProcessGroup]:
    """Make a group of each distinct set and return those that `rank` is in.

    Every rank must pass the same sets: torch names a group by how many were made before, and only
    its members connect. For the others a call takes microseconds, unless init_process_group was
    given a device: then each call splits the world's communicator. Sets of one rank get no group;
    the same ranks in another order get another one. backend: that of the world when not given.
    """
    mine: dict[RankSet, dist.ProcessGroup] = {}
    for ranks in sorted({ranks for ranks in rank_sets if len(ranks) > 1}):
        # Not with use_local_synchronization: counts would differ, and so the names of a group.
        group = _new_group(list(ranks), timeout, backend)
        if group is not None:
            mine[ranks] = group
    return mine


def patient_world(timeout: timedelta, backend: str | None = None) -> dist.ProcessGroup | None:
    """Another group of the whole world, for work that ranks do separately and that may take longer
    than a collective in training; None where there is one process. Collective over the world.

    backend: that of the world when not given.
    """
    return _new_group(None, timeout, backend) if dist.is_initialized() else None


def group_of_one(rank: int) -> dist.ProcessGroup:
    """A group of this rank alone. Collective over the world, since the next groups count it."""
    group = dist.new_group([rank], use_local_synchronization=True)
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"rank {rank} was given no group of itself")
    return group


def started(work: dist.Work | None) -> dist.Work:
    """The work of a collective or a message that a member of its group has started."""
    if work is None:
        raise ValueError("a rank started a collective in a process group that it is not in")
    return work


def _new_group(
    ranks: list[int] | None, timeout: timedelta, backend: str | None = None
) -> dist.ProcessGroup | None:
    """None where this rank is not in it."""
    group = dist.new_group(ranks, timeout=timeout, backend=backend)
    return group if isinstance(group, dist.ProcessGroup) else None
