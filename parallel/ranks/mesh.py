"""The mesh: how world ranks are laid out over pipeline, expert-data and expert parallelism.

world = pipeline x expert_data x expert, the expert rank fastest, so that the ranks that exchange
tokens with each other are neighbours (one node); data rank = (expert-data rank, expert rank).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

RankSet: TypeAlias = tuple[int, ...]
"""World ranks, in order."""
_SHOWN = 4


def few(ranks: Sequence[int]) -> str:
    """Ranks for people: the first few, and how many more there are."""
    more = len(ranks) - _SHOWN
    return ", ".join(map(str, ranks[:_SHOWN])) + f" and {more} more" * (more > 0)


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A world rank's place in the mesh."""

    pipeline: int
    expert_data: int
    expert: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """Sizes of the three dimensions. context: data ranks that share the tokens of a sequence."""

    pipeline: int = 1
    expert_data: int = 1
    expert: int = 1
    context: int = 1

    @property
    def world(self) -> int:
        return self.pipeline * self.data

    @property
    def data(self) -> int:
        """Data-parallel ranks: each trains on its own tokens."""
        return self.expert_data * self.expert

    @property
    def parts(self) -> int:
        """Of the sequences of a batch; the ranks of a context group share one."""
        return self.data // self.context

    def part(self, rank: int) -> int:
        """Of the batch, whose tokens this rank trains on, or some of them."""
        return self.data_rank(rank) // self.context

    def context_rank(self, rank: int) -> int:
        """Its place among those that share its sequences."""
        return self.data_rank(rank) % self.context

    def context_group(self, rank: int) -> RankSet:
        """The ranks that share its sequences, in order."""
        first = rank - self.context_rank(rank)
        return tuple(range(first, first + self.context))

    def coordinate(self, rank: int) -> Coordinate:
        pipeline, data = divmod(rank, self.data)
        return Coordinate(pipeline, *divmod(data, self.expert))

    def rank(self, place: Coordinate) -> int:
        return (place.pipeline * self.expert_data + place.expert_data) * self.expert + place.expert

    def data_rank(self, rank: int) -> int:
        return rank % self.data

    def pipeline_group(self, rank: int) -> RankSet:
        """The ranks of this rank's pipeline, by pipeline rank."""
        return tuple(range(rank % self.data, self.world, self.data))

    def expert_group(self, rank: int) -> RankSet:
        """The ranks that this rank exchanges tokens with, by expert rank."""
        first = rank - rank % self.expert
        return tuple(range(first, first + self.expert))

    def holders(self, pipeline_ranks: Iterable[int], expert: int | None) -> RankSet:
        """World ranks at these pipeline ranks; only those with this expert rank, if given."""
        experts = range(self.expert) if expert is None else (expert,)
        return tuple(
            self.rank(Coordinate(pipeline, expert_data, expert_rank))
            for pipeline in sorted(pipeline_ranks)
            for expert_data in range(self.expert_data)
            for expert_rank in experts
        )
