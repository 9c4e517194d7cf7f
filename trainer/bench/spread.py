"""What a repeated measurement gave: its median, and how far it scatters."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The values of one measurement, in the order in which they were taken; at least one."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, between which half of the values are."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def over(self, other: Spread) -> Spread:
        """Each value over the one that was taken beside it: what drifts on the machine weighs on
        both."""
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def as_json(self) -> dict[str, object]:
        low, high = self.quartiles
        return {"median": self.median, "quartiles": [low, high], "all": list(self.values)}
