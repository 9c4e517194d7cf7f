"""Process groups: one for each set of ranks that talks, made in one order on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch.distributed as dist

from parallel.ranks.mesh import RankSet


def make_groups(
    rank_sets: Iterable[RankSet], rank: int, timeout: timedelta
) -> Mapping[RankSet, dist.ProcessGroup]:
    """Make a group of each distinct set and return those that `rank` is in.

    Every rank must pass the same sets: making a group is collective over the world. Sets of one
    rank get no group.
    """
    mine: dict[RankSet, dist.ProcessGroup] = {}
    for ranks in sorted({ranks for ranks in rank_sets if len(ranks) > 1}):
        group = dist.new_group(list(ranks), timeout=timeout)
        if rank in ranks:
            mine[ranks] = group
    return mine


def patient_world(timeout: timedelta) -> dist.ProcessGroup | None:
    """A second group of the whole world, for work that ranks do separately and that may take longer
    than a collective in training; None where there is one process. Collective over the world."""
    return dist.new_group(timeout=timeout) if dist.is_initialized() else None
