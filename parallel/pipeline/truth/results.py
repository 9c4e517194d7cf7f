"""What the truth test measures, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from parallel.schedule.generators import generate
from parallel.schedule.table import Schedule
from parallel.study.costs import CostModel

IN_TORCH = ("1f1b", "zbv", "dualpipev")


@dataclass(frozen=True)
class TruthTest:
    """What to measure.

    names: schedules to run beside their simulation. with_torch: those to run beside torch's, of
    IN_TORCH. costs: in seconds. repeats: runs of each, of which the best counts. real_time: see
    `run_ranks`.
    """

    names: tuple[str, ...]
    with_torch: tuple[str, ...]
    ranks: int
    micro_batches: int
    costs: CostModel
    repeats: int
    real_time: bool = False

    def schedule(self, name: str) -> Schedule:
        return generate(name, self.ranks, self.micro_batches)


@dataclass(frozen=True)
class Truth:
    """A schedule's simulated and measured makespan, in seconds.

    measured: until the last rank's executor has returned, one for each repeat. in_items,
    in_messages: of the best run, the time that items took beyond their cost, and the time lost
    between items, as fractions of the simulated makespan.
    """

    name: str
    simulated: float
    measured: tuple[float, ...]
    in_items: float
    in_messages: float

    @property
    def ratio(self) -> float:
        """The best run over the simulation."""
        return min(self.measured) / self.simulated

    @property
    def median_ratio(self) -> float:
        return median(self.measured) / self.simulated


@dataclass(frozen=True)
class Comparison:
    """A schedule run by torch and by the executor, in seconds until the last rank has returned.

    ours: on stages whose input gradient leaves last, as torch's does. gradients_first: on stages
    without collectives, whose input gradient leaves before the weight gradient runs.
    """

    name: str
    simulated: float
    simulated_gradients_first: float
    torch: tuple[float, ...]
    ours: tuple[float, ...]
    gradients_first: tuple[float, ...]
