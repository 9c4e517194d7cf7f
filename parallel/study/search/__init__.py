"""The searched schedule: a better table than any handcrafted one, for given costs and memory.

Simulated annealing over the orders on a V (see `words`), where the Ws fill time that would be idle
(see `run`). One rank's word changes a little, most often on the critical path; what comes after is
run again; a worse run is kept with a probability that falls with how much worse it is, and with the
temperature. If there is time, this is repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from parallel.schedule.check import check
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.settings import require_counts
from parallel.schedule.table import Schedule, ScheduleError
from parallel.study.costs import CostModel
from parallel.study.search.anneal import Annealing, Budget, Progress
from parallel.study.search.bound import lower_bound
from parallel.study.search.orders import TIE, Orders
from parallel.study.search.starts import fitting, handcrafted, start_of
from parallel.study.search.words import SEARCHED
from parallel.study.simulate import simulate

__all__ = ["Found", "Progress", "search"]


@dataclass(frozen=True)
class Found:
    """What a search found.

    makespan, start_makespan: of the table, and of the best one that it started with, called
    `start`, in the unit of the costs. lower_bound: no table on a V under this cap finishes earlier.
    stopped: by Ctrl-C, which ends the search with what it has found so far.
    """

    schedule: Schedule
    makespan: float
    start: str
    start_makespan: float
    lower_bound: float
    moves: int
    seconds: float
    stopped: bool

    @property
    def optimal(self) -> bool:
        """The makespan is the lower bound."""
        return self.makespan <= self.lower_bound + TIE


@collector_paused()
def search(
    costs: CostModel,
    ranks: int,
    micro_batches: int,
    *,
    memory_cap: float | None = None,
    seconds: float = 60.0,
    moves: int | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    start: Schedule | None = None,
) -> Found:
    """Search for the table on a V that finishes earliest; never worse than the best it starts with.

    memory_cap: activations a rank holds at most, in full stages; `ranks` + 1/2 by default, as
    DualPipeV. seconds: how long to search, less if a table is as good as the lower bound. moves:
    stop after this many instead; the same seed then gives the same table. start: start with this
    table rather than with the handcrafted ones. progress: called about once per second.
    Raises ScheduleError for invalid counts, and for a cap or a start that is impossible.
    """
    require_counts(SEARCHED, ranks, micro_batches)
    cap = 2 * ranks + 1 if memory_cap is None else math.floor(2 * memory_cap + TIE)
    if cap < 2:
        raise ScheduleError(f"searched needs a memory cap of at least 1 full stage, got {cap / 2}")
    started = time.monotonic()
    orders = Orders(costs, ranks, micro_batches, cap)
    bound = lower_bound(costs, ranks, micro_batches, cap)
    tables = [fitting(start, orders)] if start else handcrafted(orders)
    first = min(tables, key=lambda table: simulate(table, costs).makespan)
    least = simulate(first, costs).makespan
    budget = Budget(seconds, moves, progress)
    annealing = Annealing(orders, costs, bound, least, seed)
    stopped = False
    try:
        annealing.rounds([start_of(table, orders) for table in tables], budget)
    except KeyboardInterrupt:
        stopped = True
    schedule, makespan = replace(first, name=SEARCHED), least
    if annealing.best:
        found = annealing.best.schedule()
        if (end := simulate(found, costs).makespan) < least - TIE:
            schedule, makespan = found, end
    check(schedule)
    taken = time.monotonic() - started
    return Found(schedule, makespan, first.name, least, bound, budget.made, taken, stopped)
