"""The searched schedule: a better table than the handcrafted ones, for given costs and memory.

1. Fold the placement and its costs into a chain (chain.py); say a program in turns (turns.py).
2. Start from the handcrafted tables that fit, else from a list schedule (starts.py).
3. Anneal: change the turns at random, for just enough micro-batches that ranks repeat themselves
   between fill and drain (anneal.py, moves.py, run.py).
4. Stretch the result to all micro-batches (stretch.py), and anneal what is left.

bound.py says how far from the best the result can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from random import Random

from parallel.schedule.check import check
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.settings import require_counts
from parallel.schedule.table import Placement, Schedule
from parallel.study.costs import CostModel
from parallel.study.search.anneal import Budget, Progress, anneal
from parallel.study.search.bound import lower_bound
from parallel.study.search.chain import SEARCHED, TIE, Chain, chain_of
from parallel.study.search.compiled import Compiler
from parallel.study.search.run import Run
from parallel.study.search.starts import start_of, starts
from parallel.study.search.stretch import stretched
from parallel.study.simulate import simulate

__all__ = ["SEARCHED", "Found", "Progress", "search"]

# Rounds after one from each start: with few micro-batches in all, from the start that led furthest,
# as another try often leads further still; with many, from where it led.
FRESH_ROUNDS, MORE_ROUNDS = 12, 3
POLISH = 0.15  # share of the budget for all micro-batches


@dataclass(frozen=True)
class Found:
    """What a search found.

    makespan, start_makespan: of the table, and of the best one that it started with, called
    `start`, in the unit of the costs. lower_bound: no table on this placement under this cap
    finishes earlier. stopped: by Ctrl-C, which ends the search with what it has found so far.
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
    placement: Placement,
    micro_batches: int,
    *,
    memory_cap: float | None = None,
    seconds: float = 60.0,
    moves: int | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Found:
    """Search for the table that finishes earliest; never worse than the best handcrafted one.

    placement: (flow, stage) -> rank, of one flow, or of two in opposite directions. memory_cap:
    activations that a rank holds at most, in full stages; by default as many as DualPipe and
    DualPipeV, so ranks + 1 with two flows and ranks + 1/2 on a V. seconds: how long to search, less
    if a table is as good as the lower bound. moves: stop after this many instead; the same seed
    then gives the same table. progress: called about once per second.
    Raises ScheduleError for invalid counts, placements, costs and caps.
    """
    require_counts(SEARCHED, 1 + max(placement.values()), micro_batches)
    chain = chain_of(placement, micro_batches, costs, memory_cap)
    bound = lower_bound(chain)
    tables = starts(chain)
    first = min(tables, key=lambda table: simulate(table, costs).makespan)
    least = simulate(first, costs).makespan
    state = _State(chain, bound, tables)

    def report(made: int, left: float) -> None:
        if progress:
            progress(Progress(state.least, bound, made, left))

    budget = Budget(seconds, moves, report)
    stopped = False
    try:
        state.search(Random(seed), budget)
    except KeyboardInterrupt:
        stopped = True
        state.take(state.under_way)  # what the round that it ended has found
    schedule, makespan = replace(first, name=SEARCHED), least
    found = state.best.schedule()
    if (end := simulate(found, costs).makespan) < least - TIE:
        schedule, makespan = found, end
    check(schedule)
    return Found(schedule, makespan, first.name, least, bound, budget.made, budget.taken, stopped)


class _State:
    """A search as far as it is.

    best, least: the fastest run of all micro-batches, and its makespan. under_way: the fastest of
    few micro-batches in the present round.
    """

    def __init__(self, chain: Chain, bound: float, tables: list[Schedule]) -> None:
        self._all = Compiler(chain)
        self.best = min((start_of(t, self._all) for t in tables), key=lambda run: run.makespan)
        self.least, self._bound = self.best.makespan, bound
        # As many as ranks need to repeat themselves, and a few more.
        few = min(chain.micro_batches, 2 * chain.ranks + 4)
        self._few = Compiler(replace(chain, micro_batches=few))
        self._few_bound = lower_bound(self._few.chain)
        self.under_way: Run | None = None

    def search(self, random: Random, budget: Budget) -> None:
        """Rounds of annealing with few micro-batches, and a last one with all of them."""
        first = [start_of(table, self._few) for table in starts(self._few.chain)]
        stretches = self._few.chain.micro_batches < self._all.chain.micro_batches
        rounds = len(first) + (MORE_ROUNDS if stretches else FRESH_ROUNDS)
        reached: list[tuple[float, Run]] = []
        for number in range(rounds):
            if self._is_optimal:
                return
            run = first[number] if number < len(first) else min(reached, key=lambda r: r[0])[1]
            until = (number + 1) / rounds * (1.0 - POLISH if stretches else 1.0)
            found = anneal(run, random, budget, until, self._note_few)
            reached.append((self.take(found), found if stretches else run))
        if stretches and not self._is_optimal:
            anneal(self.best, random, budget, 1.0, self._note)

    def take(self, run: Run | None) -> float:
        """Stretch a run to all micro-batches; returns the makespan."""
        longer = stretched(run, self._all) if run else None
        if longer is None:
            return inf
        if longer.makespan < self.least - TIE:
            self._note(longer)
        return longer.makespan

    @property
    def _is_optimal(self) -> bool:
        return self.least <= self._bound + TIE

    def _note(self, run: Run) -> bool:
        self.best, self.least = run, run.makespan
        return self._is_optimal

    def _note_few(self, run: Run) -> bool:
        self.under_way = run
        return run.makespan <= self._few_bound + TIE
