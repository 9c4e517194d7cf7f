"""The annealing: random changes of one rank's turns, kept or not.

A worse run is kept with a probability that falls with how much worse it is, and with the
temperature (Kirkpatrick et al., 1983). What comes before the change is not run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from parallel.study.search.chain import TIE
from parallel.study.search.compiled import Line
from parallel.study.search.moves import change
from parallel.study.search.run import Run

# Temperatures at the start and the end of an annealing, over the mean duration of a turn.
HOT, COLD = 0.06, 0.01
SPREAD = 0.6  # weight of the mean end of the ranks, beside the last end
CRITICAL = 0.6  # share of the changes that are made on the critical path
ANOTHER = 0.15  # how often a move makes one more change nearby
NEAR = 4  # how near


@dataclass(frozen=True)
class Progress:
    """Where a search is. best, lower_bound: in the unit of the costs. left: seconds, estimated."""

    best: float
    lower_bound: float
    moves: int
    seconds_left: float


class Budget:
    """How much of a search is over, by its moves or else by the clock."""

    def __init__(
        self, seconds: float, moves: int | None, report: Callable[[int, float], None]
    ) -> None:
        self.made = 0
        self._seconds, self._moves = seconds, moves
        self._begun = self._reported = time.monotonic()
        self._report = report

    @property
    def taken(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def share(self) -> float:
        """What part of it is over, 1 at the end. Reports about once per second."""
        taken = self.taken
        share = taken / max(self._seconds, TIE)
        if self._moves is not None:
            share = self.made / max(1, self._moves)
        if share and taken - self._reported >= 1.0:
            self._reported = taken
            self._report(self.made, max(0.0, taken / share - taken))
        return min(1.0, share)


def anneal(
    run: Run, random: Random, budget: Budget, until: float, done: Callable[[Run], bool]
) -> Run:
    """The best run found from `run`, until the share `until` of the budget is over.

    done: told of every better run; whether it is good enough.
    """
    draw = random.random
    turns = sum(len(line.turns) for line in run.lines)
    unit = sum(line.work for line in run.lines) / turns
    best, least, cost, path = run, run.makespan, _cost(run), run.critical()
    begun = budget.share()
    temperature = HOT * unit
    move = 0
    while True:
        if move % 32 == 0:
            share = budget.share()
            if share >= until:
                return best
            temperature = unit * HOT * (COLD / HOT) ** ((share - begun) / (until - begun))
        move += 1
        budget.made += 1
        allowed = cost - temperature * math.log(1.0 - draw())
        new = _changed(run, path, random, allowed)
        if new is None or (new_cost := _cost(new)) > allowed:
            continue
        run, cost, path = new, new_cost, new.critical()
        if (makespan := run.makespan) < least - TIE:
            best, least = run, makespan
            if done(run):
                return best


def _cost(run: Run) -> float:
    """What is minimised: the makespan, plus progress that is not visible in it yet."""
    finish = run.finish()
    return max(finish) + SPREAD * sum(finish) / len(finish)


def _changed(run: Run, path: list[tuple[int, int]], random: Random, allowed: float) -> Run | None:
    """`run` with a random change of one rank, on its critical path or anywhere.

    None if that is impossible, and usually where it costs more than `allowed`.
    """
    draw = random.random
    if draw() < CRITICAL:
        rank, position = path[int(len(path) * draw())]
    else:
        rank = int(len(run.lines) * draw())
        position = int(len(run.lines[rank].turns) * draw())
    turns, pays = run.lines[rank].turns, run.compiler.pays[rank]
    changed = change(turns, position, pays, random)
    while changed and draw() < ANOTHER:
        near = position + int((2 * NEAR + 1) * draw()) - NEAR
        changed = change(changed, min(max(0, near), len(changed) - 1), pays, random) or changed
    if changed is None or changed == turns:
        return None
    line = run.compiler.line(changed)
    return run.changed(rank, line, _limit(run, rank, line, allowed)) if line else None


def _limit(run: Run, rank: int, line: Line, allowed: float) -> float:
    """The time after which no rank's work may end, if `run` with this line is to cost at most
    `allowed`: no rank ends before its work is done, and the mean end counts too."""
    after = run.compiler.chain.after
    work = sum(each.work for each in run.lines) - run.lines[rank].work + line.work
    return allowed - SPREAD * (work + sum(after)) / len(after) - min(after) + TIE
