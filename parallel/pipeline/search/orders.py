"""The orders that the search goes through, and how long each takes: one word of letters a rank.

On a V, rank r holds stage r, its phase 0, and stage 2P - 1 - r, its phase 1. A letter says what is
computed and of which phase; the micro-batch is the next of that kind and phase. Nothing is lost
by this. In any table that can be followed, give the n-th F of every stage micro-batch n, and the
same for backwards; the n-th F of a stage begins after n Fs of the stage before it have ended, so
after the n-th of these has, and all else that an action needs is as sure. No time changes.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TypeAlias

from parallel.pipeline.costs import CostModel, Costs
from parallel.pipeline.schedule import Action, Item, Kind, Overlap, Program, Schedule

# F0 F1 I0 I1 B0 B1 W0 W1, then the pairs F0&B0 F0&B1 F1&B0 F1&B1.
FORWARD, INPUT, BACKWARD, WEIGHTS, PAIR, LETTERS = 0, 2, 4, 6, 8, 12
FORWARD_PHASE = (0, 1, -1, -1, -1, -1, -1, -1, 0, 0, 1, 1)
BACKWARD_PHASE = (-1, -1, 0, 1, 0, 1, -1, -1, 0, 1, 0, 1)
KINDS: tuple[Kind, ...] = ("F", "I", "B", "W")
TIE = 1e-9  # times closer than this are one

Word: TypeAlias = list[int]
# Duration; the slots of what it waits for; the slots where it puts what it makes, each with how
# long that is under way. Slot 0 is none.
Op: TypeAlias = tuple[float, int, int, int, float, int, float]


def v_placement(ranks: int) -> dict[tuple[int, int], int]:
    """Rank r holds stages r and 2 x ranks - 1 - r of one flow."""
    return {(0, stage): min(stage, 2 * ranks - 1 - stage) for stage in range(2 * ranks)}


def words_of(schedule: Schedule, pairs: list[bool]) -> list[Word]:
    """The words of a table on a V. pairs: by rank; if not, a pair becomes its B and then its F."""
    words: list[Word] = []
    for rank, program in enumerate(schedule.programs):
        word: Word = []
        for item in program:
            if isinstance(item, Overlap):
                forward, backward = (a.stage != rank for a in (item.forward, item.backward))
                pair = [PAIR + 2 * forward + backward]
                word += pair if pairs[rank] else [BACKWARD + backward, FORWARD + forward]
            else:
                word.append(2 * KINDS.index(item.kind) + (item.stage != rank))
        words.append(word)
    return words


def schedule_of(words: list[Word], micro_batches: int) -> Schedule:
    """The table that words stand for."""
    ranks = len(words)
    programs = tuple(_program(word, rank, ranks) for rank, word in enumerate(words))
    return Schedule("searched", ranks, micro_batches, v_placement(ranks), programs)


def _program(word: Word, rank: int, ranks: int) -> Program:
    counts = [0, 0, 0, 0]  # of F0, F1 and of the backwards of phases 0 and 1
    left: tuple[list[int], list[int]] = [], []
    program: list[Item] = []
    for letter in word:
        parts = []
        for first, phase in ((FORWARD, FORWARD_PHASE[letter]), (INPUT, BACKWARD_PHASE[letter])):
            if phase >= 0:
                kind: Kind = "F" if first == FORWARD else "I" if letter < BACKWARD else "B"
                micro_batch = counts[first + phase]
                counts[first + phase] += 1
                parts.append(Action(kind, 0, _stage(rank, phase, ranks), micro_batch))
                if kind == "I":
                    left[phase].append(micro_batch)
        if WEIGHTS <= letter < PAIR:
            phase = letter - WEIGHTS
            parts.append(Action("W", 0, _stage(rank, phase, ranks), left[phase].pop(0)))
        program.append(Overlap(*parts) if len(parts) == 2 else parts[0])
    return tuple(program)


def _stage(rank: int, phase: int, ranks: int) -> int:
    return 2 * ranks - 1 - rank if phase else rank


class Line:
    """One rank's word, made out.

    work: what its letters take together. left: what the last ones do, by how many.
    """

    __slots__ = ("_made_at", "left", "ops", "word", "work")

    def __init__(self, word: Word, ops: list[Op]) -> None:
        self.word, self.ops = word, ops
        self.left = list(accumulate([op[0] for op in reversed(ops)], initial=0.0))
        self.work = self.left[-1]
        self._made_at: dict[int, int] = {}

    def made_at(self, slot: int) -> int:
        """The position of what fills a slot."""
        if not self._made_at:
            for position, op in enumerate(self.ops):
                self._made_at[op[3]] = self._made_at[op[5]] = position
        return self._made_at[slot]


class Orders:
    """What makes out words under a cost model.

    cap: activations of a half-size stage that a rank holds at most.
    """

    def __init__(self, costs: CostModel, ranks: int, micro_batches: int, cap: int) -> None:
        self.ranks, self.micro_batches, self.cap = ranks, micro_batches, cap
        empty = Schedule("searched", ranks, micro_batches, v_placement(ranks), ((),) * ranks)
        self.costs = Costs(costs, empty)
        self.hop, self.transmission = costs.hop, costs.transmission
        optimizer = self.costs.optimizer
        self.after = [max(optimizer)] * ranks if costs.optimizer_waits else list(optimizer)
        self.durations = [[self._duration(r, x) for x in range(LETTERS)] for r in range(ranks)]
        # A pair that takes no less than its parts is no better than the B and then the F.
        pairs = range(PAIR, LETTERS)
        self.pairs_pay = [any(self._pays(d, pair) for pair in pairs) for d in self.durations]
        self._made: list[dict[tuple[int, int, int], Op]] = [{} for _ in range(ranks)]

    def _duration(self, rank: int, letter: int) -> float:
        if letter < PAIR:
            stage = _stage(rank, letter % 2, self.ranks)
            return self.costs.duration(rank, Action(KINDS[letter // 2], 0, stage, 0))
        forward = Action("F", 0, _stage(rank, FORWARD_PHASE[letter], self.ranks), 0)
        backward = Action("B", 0, _stage(rank, BACKWARD_PHASE[letter], self.ranks), 0)
        return self.costs.duration(rank, Overlap(forward, backward))

    @staticmethod
    def _pays(durations: list[float], pair: int) -> bool:
        parts = FORWARD + FORWARD_PHASE[pair], BACKWARD + BACKWARD_PHASE[pair]
        return durations[pair] < sum(durations[part] for part in parts) - TIE

    def slot(self, kind: int, rank: int, micro_batch: int) -> int:
        """Where the input of F0, F1, I0 or I1 (kinds 0 to 3) on a rank arrives."""
        return 1 + (kind * self.ranks + rank) * self.micro_batches + micro_batch

    def source_of(self, slot: int) -> int:
        """The rank that fills a slot."""
        kind, rank = divmod((slot - 1) // self.micro_batches, self.ranks)
        source = rank - 1 if kind in (FORWARD, INPUT + 1) else rank + 1
        return source if 0 <= source < self.ranks else rank

    def _path(self, kind: int, rank: int, m: int) -> tuple[int, int, float]:
        """The slots that F0, F1, I0 or I1 waits for and fills, and how long that is under way."""
        source = self.slot(kind, rank, m) if kind or rank else 0
        # Forwards of phase 0 go down the V, those of phase 1 back up; backwards the other way.
        to = rank + 1 if kind in (FORWARD, INPUT + 1) else rank - 1
        if 0 <= to < self.ranks:
            return source, self.slot(kind, to, m), self.hop + self.transmission
        if kind == INPUT:
            return source, 0, 0.0
        local = {FORWARD: FORWARD + 1, FORWARD + 1: INPUT + 1, INPUT + 1: INPUT}[kind]
        return source, self.slot(local, rank, m), 0.0

    def _op(self, rank: int, letter: int, forward: int, backward: int) -> Op:
        nothing = 0, 0, 0.0
        first = second = nothing
        if BACKWARD_PHASE[letter] >= 0:
            first = self._path(INPUT + BACKWARD_PHASE[letter], rank, backward)
        if FORWARD_PHASE[letter] >= 0:
            second = self._path(FORWARD + FORWARD_PHASE[letter], rank, forward)
        one, two = (first[1:], second[1:]) if first[1] else (second[1:], nothing[1:])
        return self.durations[rank][letter], first[0], second[0], *one, *two

    def line(self, rank: int, word: Word) -> Line | None:
        """A rank's word made out; None for one above the cap, or out of order on this rank.

        An F1 needs its F0 before it, a B1 its F1 and a B0 its B1: on the same rank where the V
        turns and where it ends, and elsewhere by the way round. The same for an I.
        """
        f0 = f1 = b0 = b1 = w0 = w1 = held = 0
        made, cap = self._made[rank], self.cap
        ops = []
        for letter in word:
            forward = backward = 0
            if INPUT <= letter < WEIGHTS:
                if letter & 1:
                    if b1 >= f1:
                        return None
                    backward, b1 = b1, b1 + 1
                    w1 += letter < BACKWARD
                else:
                    if b0 >= b1:
                        return None
                    backward, b0 = b0, b0 + 1
                    w0 += letter < BACKWARD
                held -= letter >= BACKWARD
            elif letter < PAIR and letter >= WEIGHTS:
                if (w1 if letter & 1 else w0) == 0:
                    return None
                w1, w0 = (w1 - 1, w0) if letter & 1 else (w1, w0 - 1)
                held -= 1
            else:
                if held >= cap:
                    return None
                pair = letter >= PAIR
                if pair and (b1 >= f1 if letter & 1 else b0 >= b1):
                    return None
                if FORWARD_PHASE[letter]:
                    if f1 >= f0:
                        return None
                    forward, f1 = f1, f1 + 1
                else:
                    forward, f0 = f0, f0 + 1
                if not pair:
                    held += 1
                elif letter & 1:
                    backward, b1 = b1, b1 + 1
                else:
                    backward, b0 = b0, b0 + 1
            op = made.get((letter, forward, backward))
            if op is None:
                op = made[letter, forward, backward] = self._op(rank, letter, forward, backward)
            ops.append(op)
        return Line(word, ops)
