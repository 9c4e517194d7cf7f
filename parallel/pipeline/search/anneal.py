"""The annealing: random changes of the words, kept or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from parallel.pipeline.costs import CostModel
from parallel.pipeline.schedule import ScheduleError
from parallel.pipeline.search.bound import rank_starts
from parallel.pipeline.search.moves import propose
from parallel.pipeline.search.orders import TIE, Line, Orders, Word
from parallel.pipeline.search.run import Run

MOVES_AN_ITEM = 1200  # of a hot round that cools down slowly enough
# Temperatures at the begin and the end of a round, over the mean duration of an item.
COOL, HOT = (0.04, 0.006), (0.2, 0.03)
SPREAD = 0.3  # what the mean end of the ranks counts for, beside the last
EXCESS = 0.1  # and what each rank's work does, where it alone takes longer than the lower bound
CRITICAL = 0.6  # of the changes that are made on the critical path
ANOTHER = 0.15  # how often one more change is made at once


@dataclass(frozen=True)
class Progress:
    """Where a search is. rate: moves a second. seconds_left: an estimate."""

    best: float
    lower_bound: float
    moves: int
    rate: float
    seconds_left: float


class Budget:
    """How much of a search is over, by its moves or else by the clock."""

    def __init__(
        self,
        seconds: float,
        moves: int | None,
        progress: Callable[[Progress], None] | None,
        begun: float,
    ) -> None:
        self.made = 0
        self._seconds, self._moves, self._begun = seconds, moves, begun
        self._progress, self._reported = progress, begun

    def rounds(self, run: Run) -> int:
        """How many hot rounds there is time for; 0 for a cool one."""
        items = sum(len(line.ops) for line in run.lines)
        moves = self._moves
        if moves is None:
            begin = time.perf_counter()
            Run(run.orders, run.lines).follow()
            moves = int(self._seconds / (0.4 * (time.perf_counter() - begin) + 1e-5))
        return round(moves / (MOVES_AN_ITEM * items))

    def over(self, best: float, bound: float) -> float:
        """From 0 to 1 and beyond. Reports the progress."""
        now = time.monotonic()
        taken = max(now - self._begun, 1e-9)
        over = taken / max(self._seconds, 1e-9)
        if self._moves is not None:
            over = self.made / max(1, self._moves)
        if self._progress and now - self._reported >= 1.0:
            self._reported = now
            left = taken / over - taken if over else math.inf
            self._progress(Progress(best, bound, self.made, self.made / taken, max(0.0, left)))
        return over


class Annealing:
    """The annealing. Its temperatures are in units of an item's mean duration."""

    def __init__(
        self, orders: Orders, costs: CostModel, bound: float, seed: int, budget: Budget
    ) -> None:
        self.orders, self.bound, self.budget = orders, bound, budget
        self.random = Random(seed)
        self.begins = rank_starts(costs, orders.ranks)
        self.least_idle = sum(self.begins) + sum(orders.after)  # of all ranks, and the optimizer

    def run_of(self, words: list[Word]) -> Run:
        """The run of words that are known to be fine."""
        lines = [self.orders.line(rank, word) for rank, word in enumerate(words)]
        run = Run(self.orders, [line for line in lines if line])
        if None in lines or not run.follow():
            raise ScheduleError("the table to begin with cannot be followed")
        return run

    def cost(self, run: Run) -> float:
        """What the annealing makes small: mostly the makespan, and what it cannot see yet."""
        finish = run.finish()
        excess = 0.0
        for begin, line, after in zip(self.begins, run.lines, self.orders.after):
            excess += max(0.0, begin + line.work + after - self.bound)
        return max(finish) + SPREAD * sum(finish) / len(finish) + EXCESS * excess

    def rounds(self, starts: list[Run]) -> Run:
        """The best run of all rounds: hot ones, from the start that has the fewest pairs.

        Hot enough, a round forgets its start; where there is no time for that, one cool round.
        """
        best = starts[0]
        rounds = self.budget.rounds(best)
        if not rounds:
            return self._round(best, best, COOL, 0.0, 1.0)
        begin = max(starts, key=lambda run: sum(len(line.ops) for line in run.lines))
        for number in range(rounds):
            best = self._round(begin, best, HOT, number / rounds, (number + 1) / rounds)
        return best

    def _round(
        self, run: Run, best: Run, temperatures: tuple[float, float], begin: float, end: float
    ) -> Run:
        """Anneal from `run` from when `begin` of the budget is over to when `end` is."""
        items = sum(len(line.ops) for line in run.lines)
        unit = sum(line.work for line in run.lines) / items
        hot, cold = (unit * temperature for temperature in temperatures)
        cost, least, path = self.cost(run), max(best.finish()), run.critical()
        temperature, budget, draw = hot, self.budget, self.random.random
        while least > self.bound + TIE:
            if budget.made % 64 == 0:
                over = (budget.over(least, self.bound) - begin) / (end - begin)
                if over >= 1.0:
                    break
                temperature = hot * (cold / hot) ** max(0.0, over)
            budget.made += 1
            allowed = cost - temperature * math.log(1.0 - draw())
            new = self._changed(run, path, allowed)
            if new is None:
                continue
            new_cost = self.cost(new)
            if new_cost <= allowed:
                run, cost, path = new, new_cost, new.critical()
                if max(run.finish()) < least - TIE:
                    best, least = run, max(run.finish())
        return best

    def _changed(self, run: Run, path: list[tuple[int, int]], allowed: float) -> Run | None:
        """`run` with a random change, on its critical path or anywhere.

        None if it cannot be, and mostly where its cost is above `allowed`.
        """
        random = self.random
        draw = random.random
        if draw() < CRITICAL:
            rank, position = path[int(len(path) * draw())]
            word = run.lines[rank].word
        else:
            rank = int(self.orders.ranks * draw())
            word = run.lines[rank].word
            position = int(len(word) * draw())
        pairs = self.orders.pairs_pay[rank]
        changed = propose(word, position, pairs, random)
        while changed and draw() < ANOTHER:
            near = position + int(9 * draw()) - 4
            near = min(max(0, near), len(changed) - 1)
            changed = propose(changed, near, pairs, random) or changed
        if changed is None or changed == word:
            return None
        line = self.orders.line(rank, changed)
        return run.changed(rank, line, self._limit(run, rank, line, allowed)) if line else None

    def _limit(self, run: Run, rank: int, line: Line, allowed: float) -> float:
        """No run of `run` with this line costs as little as `allowed` if a rank's work ends later.

        For no rank ends before its work is done, and the mean end counts too.
        """
        soonest = self.least_idle - run.lines[rank].work + line.work
        for each in run.lines:
            soonest += each.work
        return allowed - SPREAD * soonest / len(run.lines) - min(self.orders.after) + TIE
