"""Words compiled under a cost model: how long each letter takes, what it waits for and makes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from parallel.schedule.generators.placements import v_placement
from parallel.schedule.table import Action, Kind, Overlap, Schedule
from parallel.study.costs import CostModel, Costs
from parallel.study.search.words import (
    BACKWARD_PHASE,
    FORWARD,
    FORWARD_PHASE,
    INPUT,
    LETTERS,
    PAIR,
    SEARCHED,
    Word,
    stage_of,
)

TIE = 1e-9  # times closer than this are equal


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """A compiled letter. Slots are where what one rank makes for another arrives; 0 is none.

    first_input, second_input: the slots of what it waits for. split: how many Ws the letters before
    it have left. wanted: how many of these the memory cap wants done first. first_output,
    second_output: the slots of what it makes, each with how long that is in transit.
    """

    duration: float
    first_input: int
    second_input: int
    split: int
    wanted: int
    first_output: int
    first_under_way: float
    second_output: int
    second_under_way: float


class Line:
    """One rank's word, compiled.

    weights: how long its Ws take, in the order of their Is. work: its letters and Ws together.
    left: the letters from each position on. rest: the Ws from each one on.
    """

    __slots__ = ("_made_at", "left", "ops", "rest", "weights", "word", "work")

    def __init__(self, word: Word, ops: list[Op], weights: list[float]) -> None:
        self.word, self.ops, self.weights = word, ops, weights
        self.left = list(accumulate([op.duration for op in reversed(ops)], initial=0.0))[::-1]
        self.rest = list(accumulate(reversed(weights), initial=0.0))[::-1]
        self.work = self.left[0] + self.rest[0]
        self._made_at: dict[int, int] = {}

    def made_at(self, slot: int) -> int:
        """The position of what fills a slot."""
        if not self._made_at:
            for position, op in enumerate(self.ops):
                self._made_at[op.first_output] = self._made_at[op.second_output] = position
        return self._made_at[slot]


class Orders:
    """Compiles words under a cost model.

    cap: activations of a half-size stage that a rank holds at most.
    """

    def __init__(self, costs: CostModel, ranks: int, micro_batches: int, cap: int) -> None:
        self.ranks, self.micro_batches, self.cap = ranks, micro_batches, cap
        empty = Schedule(SEARCHED, ranks, micro_batches, v_placement(ranks), ((),) * ranks)
        self.costs = Costs(costs, empty)
        self.hop, self.transmission = costs.hop, costs.transmission
        optimizer = self.costs.optimizer
        self.after = [max(optimizer)] * ranks if costs.optimizer_waits else list(optimizer)
        self.durations = [[self._duration(r, x) for x in range(LETTERS)] for r in range(ranks)]
        self.weights = [[self._alone("W", r, phase) for phase in (0, 1)] for r in range(ranks)]
        self.pairs_pay = [any(self._pays(r, x) for x in range(PAIR, LETTERS)) for r in range(ranks)]
        self._made: list[dict[tuple[int, int, int, int, int], Op]] = [{} for _ in range(ranks)]

    def _alone(self, kind: Kind, rank: int, phase: int) -> float:
        return self.costs.duration(rank, Action(kind, 0, stage_of(rank, phase, self.ranks), 0))

    def _duration(self, rank: int, letter: int) -> float:
        if letter < PAIR:
            return self._alone("F" if letter < INPUT else "I", rank, letter % 2)
        forward = Action("F", 0, stage_of(rank, FORWARD_PHASE[letter], self.ranks), 0)
        backward = Action("B", 0, stage_of(rank, BACKWARD_PHASE[letter], self.ranks), 0)
        return self.costs.duration(rank, Overlap(forward, backward))

    def _pays(self, rank: int, pair: int) -> bool:
        """A pair that takes no less than its parts is no better than the B and then the F."""
        alone = self._alone("F", rank, FORWARD_PHASE[pair])
        alone += self._alone("B", rank, BACKWARD_PHASE[pair])
        return self.durations[rank][pair] < alone - TIE

    def slot(self, kind: int, rank: int, micro_batch: int) -> int:
        """Where the input of F0, F1, I0 or I1 (kinds 0 to 3) on a rank arrives."""
        return 1 + (kind * self.ranks + rank) * self.micro_batches + micro_batch

    def source_of(self, slot: int) -> int:
        """The rank that fills a slot."""
        kind, rank = divmod((slot - 1) // self.micro_batches, self.ranks)
        source = rank - 1 if kind in (FORWARD, INPUT + 1) else rank + 1
        return source if 0 <= source < self.ranks else rank

    def _path(self, kind: int, rank: int, m: int) -> tuple[int, int, float]:
        """The slots that F0, F1, I0 or I1 waits for and fills, and how long that is in transit."""
        source = self.slot(kind, rank, m) if kind or rank else 0
        # Forwards of phase 0 go down the V, those of phase 1 back up; backwards the other way.
        to = rank + 1 if kind in (FORWARD, INPUT + 1) else rank - 1
        if 0 <= to < self.ranks:
            return source, self.slot(kind, to, m), self.hop + self.transmission
        if kind == INPUT:
            return source, 0, 0.0
        local = {FORWARD: FORWARD + 1, FORWARD + 1: INPUT + 1, INPUT + 1: INPUT}[kind]
        return source, self.slot(local, rank, m), 0.0

    def _op(self, rank: int, letter: int, forward: int, backward: int, ws: tuple[int, int]) -> Op:
        nothing = 0, 0, 0.0
        first = second = nothing
        if BACKWARD_PHASE[letter] >= 0:
            first = self._path(INPUT + BACKWARD_PHASE[letter], rank, backward)
        if FORWARD_PHASE[letter] >= 0:
            second = self._path(FORWARD + FORWARD_PHASE[letter], rank, forward)
        one, two = (first[1:], second[1:]) if first[1] else (second[1:], nothing[1:])
        return Op(self.durations[rank][letter], first[0], second[0], *ws, *one, *two)

    def line(self, rank: int, word: Word) -> Line | None:
        """A rank's word compiled; None for one above the cap, or out of order on this rank.

        An F1 needs its F0 before it, an I1 its F1 and an I0 its I1: on the same rank where the V
        turns and where it ends, and elsewhere by the way round. The same for a B in a pair.
        """
        f0 = f1 = b0 = b1 = split = 0  # split: Is, each of which leaves a W
        above = 1 - self.cap  # how many Ws the cap wants done before the next F
        made, (weights0, weights1) = self._made[rank], self.weights[rank]
        ops, weights = [], []
        for letter in word:
            forward = backward = wanted = 0
            if letter < INPUT or letter >= PAIR:
                if above > 0:
                    if above > split:
                        return None
                    wanted = above
                if letter >= PAIR and (b1 >= f1 if letter & 1 else b0 >= b1):
                    return None
                if FORWARD_PHASE[letter]:
                    if f1 >= f0:
                        return None
                    forward, f1 = f1, f1 + 1
                else:
                    forward, f0 = f0, f0 + 1
            elif b1 >= f1 if letter & 1 else b0 >= b1:
                return None
            if letter >= INPUT:
                if letter & 1:
                    backward, b1 = b1, b1 + 1
                else:
                    backward, b0 = b0, b0 + 1
            op = made.get((letter, forward, backward, split, wanted))
            if op is None:
                op = self._op(rank, letter, forward, backward, (split, wanted))
                made[letter, forward, backward, split, wanted] = op
            ops.append(op)
            if letter < INPUT:
                above += 1
            elif letter < PAIR:
                split += 1
                weights.append(weights1 if letter & 1 else weights0)
        return Line(word, ops, weights)
