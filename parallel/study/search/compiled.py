"""Turns compiled under the costs of a chain: how long each takes, what it waits for and makes.

What one stage makes for another passes a gate, which opens when it arrives there. Gate 0 is always
open.
"""

from __future__ import annotations

from itertools import accumulate
from math import inf
from typing import NamedTuple, TypeAlias

from parallel.study.search.chain import Chain
from parallel.study.search.turns import NONE, Turn, Turns

Opens: TypeAlias = tuple[tuple[int, float], ...]


class Step(NamedTuple):
    """A turn with what it means under a chain's costs.

    gate, other_gate: what it waits for. left: how many W the turns before have left. due: how many
    of these the memory cap wants done first. opens: the gates of what it makes, and how long that
    is under way.
    """

    duration: float
    gate: int
    other_gate: int
    left: int
    due: int
    opens: Opens


class Line:
    """One rank's turns, compiled.

    steps: by turn. weights: how long its W take, in the order of their turns. work: of all of it.
    work_left: of the steps from each position on. weights_left: of the W from each one on.
    """

    __slots__ = ("_maker", "steps", "turns", "weights", "weights_left", "work", "work_left")

    def __init__(self, turns: Turns, steps: list[Step], weights: list[float]) -> None:
        self.turns, self.steps, self.weights = turns, steps, weights
        durations = [step.duration for step in reversed(steps)]
        self.work_left = list(accumulate(durations, initial=0.0))[::-1]
        self.weights_left = list(accumulate(reversed(weights), initial=0.0))[::-1]
        self.work = self.work_left[0] + self.weights_left[0]
        self._maker: dict[int, int] = {}

    def maker(self, gate: int) -> int:
        """The position of the turn that opens a gate."""
        if not self._maker:
            for position, step in enumerate(self.steps):
                self._maker |= {opened: position for opened, _ in step.opens}
        return self._maker[gate]


class Compiler:
    """Compiles turns under the costs of a chain.

    pays: by rank, whether a pair takes less than its parts.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.pays = [chain.pairs_pay(rank) for rank in range(chain.ranks)]
        self._compiled: dict[tuple[int, ...], Step] = {}

    def gates(self) -> list[float]:
        """All gates, closed."""
        return [0.0] + [inf] * (2 * self.chain.stages * self.chain.micro_batches)

    def maker_of(self, gate: int) -> int:
        """The rank that opens a gate."""
        chain = self.chain
        number, stage = divmod((gate - 1) // chain.micro_batches, chain.stages)
        if number:
            return chain.rank_of[min(stage + 1, chain.stages - 1)]
        return chain.rank_of[stage - 1]

    def line(self, turns: Turns) -> Line | None:
        """A rank's turns compiled; None where the memory cap stops them."""
        forwards, backwards = [0] * (self.chain.stages + 1), [0] * (self.chain.stages + 1)
        left = 0
        above = 1 - self.chain.cap  # how many W the cap wants done before the next forward
        steps, weights, compiled = [], [], self._compiled
        for turn in turns:
            forward, backward = turn
            due = 0
            if forward != NONE and above > 0:
                if above > left:
                    return None
                due = above
            key = forward, backward, forwards[forward], backwards[backward], left, due
            step = compiled.get(key)
            if step is None:
                step = compiled[key] = self._step(*key)
            steps.append(step)
            if forward != NONE:
                forwards[forward] += 1
                above += backward == NONE
            if backward != NONE:
                backwards[backward] += 1
                if forward == NONE:
                    left += 1
                    weights.append(self.chain.weight_grad[backward])
        return Line(turns, steps, weights)

    def _step(self, forward: int, backward: int, f: int, b: int, left: int, due: int) -> Step:
        gate, ahead = self._ahead(forward, f) if forward != NONE else (0, ())
        other_gate, back = self._back(backward, b) if backward != NONE else (0, ())
        duration = self.chain.duration(Turn(forward, backward))
        return Step(duration, gate, other_gate, left, due, (*back, *ahead))

    def _gate(self, kind: int, stage: int, micro_batch: int) -> int:
        """Of what F (kind 0) or B (kind 1) of a stage waits for."""
        count = self.chain.micro_batches
        return 1 + (kind * self.chain.stages + stage) * count + micro_batch

    def _ahead(self, stage: int, micro_batch: int) -> tuple[int, Opens]:
        """What a forward waits for, and opens."""
        gate = self._gate(0, stage, micro_batch) if stage else 0
        if stage == self.chain.stages - 1:
            return gate, ((self._gate(1, stage, micro_batch), 0.0),)
        return gate, ((self._gate(0, stage + 1, micro_batch), self.chain.transit[stage]),)

    def _back(self, stage: int, micro_batch: int) -> tuple[int, Opens]:
        """What a backward waits for, and opens."""
        gate = self._gate(1, stage, micro_batch)
        if stage == 0:
            return gate, ()
        return gate, ((self._gate(1, stage - 1, micro_batch), self.chain.transit[stage - 1]),)
