"""The annealing: random changes of the words, kept or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from parallel.study.costs import CostModel
from parallel.study.search.bound import rank_starts
from parallel.study.search.moves import propose
from parallel.study.search.orders import TIE, Line, Orders
from parallel.study.search.run import Run

# Of a round: moves per letter, if there is time; temperatures at the start and the end, over the
# mean duration of a letter. A cool one stays near its start, a hot one does not.
COOL, HOT = (200, 0.04, 0.005), (400, 0.16, 0.02)
SPREAD = 0.6  # weight of the mean end of the ranks, beside the last end
EXCESS = 0.2  # weight of a rank's work, where it alone exceeds the lower bound
CRITICAL = 0.6  # share of the changes that are made on the critical path
ANOTHER = 0.15  # how often a move makes one more change


@dataclass(frozen=True)
class Progress:
    """Where a search is. rate: moves per second. seconds_left: an estimate."""

    best: float
    lower_bound: float
    moves: int
    rate: float
    seconds_left: float


class Budget:
    """How far a search is, by its moves or else by the clock."""

    def __init__(
        self,
        seconds: float,
        moves: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.made = 0
        self._seconds, self._moves, self._begun = seconds, moves, time.monotonic()
        self._progress, self._reported = progress, self._begun

    def left(self, run: Run) -> int:
        """How many moves remain; an estimate where the clock decides."""
        if self._moves is not None:
            return self._moves - self.made
        taken = time.monotonic() - self._begun
        if self.made:
            return int((self._seconds - taken) * self.made / taken)
        start = time.perf_counter()
        Run(run.orders, run.lines).follow()
        per_move = 0.4 * (time.perf_counter() - start) + 1e-5
        return int((self._seconds - taken) / per_move)

    def over(self, best: float, bound: float) -> bool:
        """Whether it is over. Reports the progress."""
        now = time.monotonic()
        taken = max(now - self._begun, 1e-9)
        share = taken / max(self._seconds, 1e-9)
        if self._moves is not None:
            share = self.made / max(1, self._moves)
        if self._progress and now - self._reported >= 1.0:
            self._reported = now
            left = taken / share - taken if share else math.inf
            self._progress(Progress(best, bound, self.made, self.made / taken, max(0.0, left)))
        return share >= 1.0


class Annealing:
    """The annealing. Its temperatures are in units of a letter's mean duration.

    least: the makespan to beat. best: the fastest run so far that has beaten it, if any.
    """

    def __init__(
        self, orders: Orders, costs: CostModel, bound: float, least: float, seed: int
    ) -> None:
        self.orders, self.bound = orders, bound
        self.least = least
        self.best: Run | None = None
        self.random = Random(seed)
        self.rank_starts = rank_starts(costs, orders.ranks)
        self.least_idle = sum(self.rank_starts) + sum(
            orders.after
        )  # of all ranks, and the optimizer

    def cost(self, run: Run) -> float:
        """What the annealing minimises: mostly the makespan, plus progress not visible in it."""
        finish = run.finish()
        excess = 0.0
        for first, line, after in zip(self.rank_starts, run.lines, self.orders.after):
            excess += max(0.0, first + line.work + after - self.bound)
        return max(finish) + SPREAD * sum(finish) / len(finish) + EXCESS * excess

    def rounds(self, starts: list[Run], budget: Budget) -> None:
        """A cool round from each start, and then others as long as there is time.

        Two of three rounds are of the kind that led furthest, the third takes all kinds in turn;
        each kind's next round is longer than its last.
        """
        kinds = [(start, heat) for heat in (COOL, HOT) for start in starts]
        reached, times = [math.inf] * len(kinds), [0] * len(kinds)
        number = 0
        while not budget.over(self.least, self.bound) and self.least > self.bound + TIE:
            turn, third = divmod(number - len(starts), 3)
            kind = number
            if number >= len(starts):
                furthest = reached.index(min(reached))
                kind = (turn + len(starts)) % len(kinds) if third == 2 else furthest
            start, heat = kinds[kind]
            times[kind] += 1
            share = max(1, budget.left(start) // max(1, len(starts) - number))
            makespan = round(self._round(start, heat, times[kind], share, budget), 9)
            reached[kind] = min(reached[kind], makespan)
            number += 1

    def _round(
        self, run: Run, heat: tuple[int, float, float], times: int, most: int, budget: Budget
    ) -> float:
        """Anneal from `run`, `times` times as long as `heat` says, in at most `most` moves. Returns
        the best makespan found.
        """
        letters = sum(len(line.ops) for line in run.lines)
        unit = sum(line.work for line in run.lines) / letters
        moves_per_letter, hot, cold = heat
        moves = min(most, moves_per_letter * letters * times)
        cost, path, reached = self.cost(run), run.critical(), self._note(run)
        temperature, draw = hot * unit, self.random.random
        for move in range(moves):
            if move % 64 == 0:
                if self.least <= self.bound + TIE or budget.over(self.least, self.bound):
                    break
                temperature = unit * hot * (cold / hot) ** (move / moves)
            budget.made += 1
            allowed = cost - temperature * math.log(1.0 - draw())
            new = self._changed(run, path, allowed)
            if new is None:
                continue
            new_cost = self.cost(new)
            if new_cost <= allowed:
                run, cost, path = new, new_cost, new.critical()
                reached = min(reached, self._note(run))
        return reached

    def _note(self, run: Run) -> float:
        """The makespan of `run`; keeps the run if it is the fastest so far."""
        if (makespan := max(run.finish())) < self.least - TIE:
            self.best, self.least = run, makespan
        return makespan

    def _changed(self, run: Run, path: list[tuple[int, int]], allowed: float) -> Run | None:
        """`run` with a random change, on its critical path or anywhere.

        None if that is impossible, and usually where its cost is above `allowed`.
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
        """The time after which no rank's work may end, if `run` with this line is to cost at most
        `allowed`: no rank ends before its work is done, and the mean end counts too.
        """
        earliest = self.least_idle - run.lines[rank].work + line.work
        for each in run.lines:
            earliest += each.work
        return allowed - SPREAD * earliest / len(run.lines) - min(self.orders.after) + TIE
