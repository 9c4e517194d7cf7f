"""Copies: one rule for every gradient.

The copies of a parameter are all ranks that hold it: data-parallel replicas; for an expert only
the ranks that hold the same experts; for a DualPipe stage also the mirror rank, which holds the
same stages in the other flow; for the embedding, also the last stage where MTP reads it. A
gradient is the sum over its copies of what each has accumulated. The gradient norm counts every
parameter once. Neither looks at which kind of parallelism made the copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parallel.ranks.mesh import Mesh, RankSet
from parallel.schedule.table import Placement


@dataclass(frozen=True, slots=True)
class Home:
    """Where a parameter lives: the stages (by depth) that use it, and whether it is an expert's."""

    stages: frozenset[int]
    expert: bool = False


def copies(home: Home, mesh: Mesh, placement: Placement, expert_rank: int) -> RankSet:
    """The world ranks that hold the same copy of a parameter, in order.

    expert_rank: of any rank that holds it; it matters for an expert's parameters only.
    """
    pipeline_ranks = {holder for (_, stage), holder in placement.items() if stage in home.stages}
    return mesh.holders(pipeline_ranks, expert_rank if home.expert else None)


def all_copies(homes: Iterable[Home], mesh: Mesh, placement: Placement) -> set[RankSet]:
    """Every set of copies in the world, for making the process groups."""
    return {
        copies(home, mesh, placement, expert_rank)
        for home in set(homes)
        for expert_rank in range(mesh.expert)
    }
