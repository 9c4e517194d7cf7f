"""The searched schedule: a better table than any handcrafted one, for given costs and memory.

Simulated annealing over the orders on a V (see `orders`). One rank's word changes a little,
most often on the critical path; what comes after is run again; a worse run is kept with a
probability that falls with how much worse it is, and with the temperature. Given the time, it is
done several times over, so hot at first that little is left of the table it begins with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from parallel.pipeline.check import check, peak_in_flight
from parallel.pipeline.collector import collector_paused
from parallel.pipeline.costs import CostModel
from parallel.pipeline.generators import GENERATORS
from parallel.pipeline.schedule import Schedule, ScheduleError, require_counts
from parallel.pipeline.search.anneal import Annealing, Budget, Progress
from parallel.pipeline.search.bound import lower_bound
from parallel.pipeline.search.orders import (
    BACKWARD,
    FORWARD,
    INPUT,
    TIE,
    WEIGHTS,
    Orders,
    schedule_of,
    v_placement,
    words_of,
)
from parallel.pipeline.search.run import Run
from parallel.pipeline.simulate import simulate

__all__ = ["Found", "Progress", "search"]


@dataclass(frozen=True)
class Found:
    """What a search found.

    makespan, start_makespan: of the table, and of the best one that it began with, called
    `start`, in the unit of the costs. lower_bound: no table on a V under this cap is done sooner.
    """

    schedule: Schedule
    makespan: float
    start: str
    start_makespan: float
    lower_bound: float
    moves: int
    seconds: float

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
    """Search for the table on a V that is done soonest; never worse than the best it begins with.

    memory_cap: activations a rank holds at most, in full stages; `ranks` + 1/2 by default, as
    DualPipeV. seconds: how long to search, less if a table is as good as the lower bound. moves:
    stop after so many instead; the same seed then gives the same table. start: begin with this
    table rather than with the handcrafted ones. progress: called about once a second.
    Raises ScheduleError for counts, a cap or a start that cannot be.
    """
    require_counts("searched", ranks, micro_batches)
    cap = 2 * ranks + 1 if memory_cap is None else math.floor(2 * memory_cap + TIE)
    if cap < 2:
        raise ScheduleError(f"searched needs a memory cap of at least 1 full stage, got {cap / 2}")
    orders = Orders(costs, ranks, micro_batches, cap)
    bound = lower_bound(costs, ranks, micro_batches, cap)
    tables = [_fitting(start, orders)] if start else _handcrafted(orders)
    simulated = [simulate(table, costs).makespan for table in tables]
    first = min(range(len(tables)), key=simulated.__getitem__)
    begun = time.monotonic()
    search = Annealing(orders, costs, bound, seed, Budget(seconds, moves, progress, begun))
    runs = [search.run_of(words_of(table, orders.pairs_pay)) for table in tables]
    best = search.rounds(sorted(runs, key=lambda run: max(run.finish())))
    schedule = _tidied(best).schedule()
    makespan = simulate(schedule, costs).makespan
    if makespan > simulated[first] - TIE:
        schedule, makespan = replace(tables[first], name="searched"), simulated[first]
    check(schedule)
    taken = time.monotonic() - begun
    name = tables[first].name
    return Found(schedule, makespan, name, simulated[first], bound, search.budget.made, taken)


def _fitting(table: Schedule, orders: Orders) -> Schedule:
    """`table`, if it is one that the search can begin with."""
    ranks, micro_batches, cap = orders.ranks, orders.micro_batches, orders.cap
    if (table.ranks, table.micro_batches) != (ranks, micro_batches):
        raise ScheduleError(
            f"{table.name} is for {table.ranks} ranks and {table.micro_batches} micro-batches, "
            f"not {ranks} and {micro_batches}"
        )
    if dict(table.placement) != v_placement(ranks) or not table.training:
        raise ScheduleError(f"{table.name} is not a table of training on a V")
    if (peak := max(check(table).peak_in_flight)) > cap / 2 + TIE:
        raise ScheduleError(f"{table.name} holds {peak} full-stage activations, above {cap / 2}")
    return table


def _handcrafted(orders: Orders) -> list[Schedule]:
    """All tables on a V under the cap; at the least, one micro-batch after the other."""
    ranks, micro_batches = orders.ranks, orders.micro_batches
    word = [FORWARD, FORWARD + 1, BACKWARD + 1, BACKWARD] * micro_batches
    one_by_one = schedule_of([word] * ranks, micro_batches)
    tables = [replace(one_by_one, name="one micro-batch at a time")]
    for generator in GENERATORS.values():
        try:
            table = generator(ranks, micro_batches)
        except ScheduleError:
            continue  # does not support these numbers
        placed = dict(table.placement) == v_placement(ranks)
        if placed and max(peak_in_flight(table)) <= orders.cap / 2 + TIE:
            tables.append(table)
    return tables[1:] or tables


def _tidied(run: Run) -> Run:
    """Every I that its W follows at once becomes a B, where that is no later."""
    makespan = max(run.finish())
    for rank in range(run.orders.ranks):
        word = run.lines[rank].word
        for position in range(len(word) - 2, -1, -1):
            phase = word[position] - INPUT
            if phase in (0, 1) and word[position + 1] == WEIGHTS + phase:
                merged = [*word[:position], BACKWARD + phase, *word[position + 2 :]]
                line = run.orders.line(rank, merged)
                tried = line and run.changed(rank, line)
                if tried and max(tried.finish()) <= makespan + TIE:
                    run, word = tried, merged
    return run
