"""Expert placement: which rank of an expert group holds which experts, in which order.

A table, read by dispatch, names, loading and saving. The contiguous rule is one such table; a
balanced one, or one that holds busy experts more than once, is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallel.errors import TandemError


class PlacementError(TandemError):
    """A table that leaves an expert out, or does not give every rank equally many."""

    exit_code = 2


@dataclass(frozen=True)
class ExpertPlacement:
    """held: by rank of the expert group, the experts that it holds, in the order of its slots.

    Every rank holds equally many, and every expert from 0 on is held somewhere, possibly more than
    once. Raises PlacementError otherwise.
    """

    held: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len({len(slots) for slots in self.held}) != 1:
            raise PlacementError(
                f"experts by rank {[len(slots) for slots in self.held]}: every rank of an expert "
                "group must hold equally many"
            )
        missing = set(range(self.experts)) - set(self.homes)
        if missing or min(self.homes) < 0:
            raise PlacementError(f"experts {sorted(missing)} are held by no rank")

    @classmethod
    def contiguous(cls, experts: int, ranks: int) -> ExpertPlacement:
        """Rank i holds experts [i, i + 1) x experts / ranks. PlacementError if not divisible."""
        if experts % ranks:
            raise PlacementError(f"{experts} experts cannot be divided among {ranks} ranks")
        each = experts // ranks
        return cls(tuple(tuple(range(r * each, (r + 1) * each)) for r in range(ranks)))

    @property
    def ranks(self) -> int:
        return len(self.held)

    @property
    def slots(self) -> int:
        """Experts that each rank holds."""
        return len(self.held[0])

    @cached_property
    def experts(self) -> int:
        """Different experts."""
        return 1 + max(expert for slots in self.held for expert in slots)

    @cached_property
    def homes(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """By expert, each (rank, slot) that holds it; the first one saves it."""
        homes: dict[int, tuple[tuple[int, int], ...]] = {}
        for rank, slots in enumerate(self.held):
            for slot, expert in enumerate(slots):
                homes[expert] = (*homes.get(expert, ()), (rank, slot))
        return homes

    @property
    def redundant(self) -> bool:
        """Whether an expert is held more than once."""
        return self.ranks * self.slots > self.experts

    def places_by_copy(self) -> Sequence[Sequence[int]]:
        """[copies][experts]: the place (rank x slots + slot) of the c-th copy of each expert,
        cycling through the copies of an expert that has fewer than the most."""
        most = max(map(len, self.homes.values()))
        return [
            [self._place(expert, copy) for expert in range(self.experts)] for copy in range(most)
        ]

    def _place(self, expert: int, copy: int) -> int:
        homes = self.homes[expert]
        rank, slot = homes[copy % len(homes)]
        return rank * self.slots + slot
