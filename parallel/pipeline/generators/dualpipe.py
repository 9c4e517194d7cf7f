"""DualPipe and DualPipeV: eight steps, written once.

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.2.1, and the published code
(github.com/deepseek-ai/DualPipe, commit 3da1bbe), whose compute order this table reproduces.

Both schedules run the same programs. A rank holds two stages, its *phases* 0 and 1. DualPipeV
folds one flow into a V: phase 0 is the stage on the way down, phase 1 the one on the way back.
DualPipe sends a second flow the other way instead, so its second half of the ranks is the mirror
of the first: phase 0 there is flow 1. Hence DualPipe(2P, 2C), rank r < P, is DualPipeV(P, C),
rank r.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

from parallel.pipeline.schedule import (
    Action,
    Item,
    Overlap,
    Program,
    Schedule,
    ScheduleError,
    require_counts,
)

Place: TypeAlias = tuple[int, int]


def dualpipe(ranks: int, micro_batches: int) -> Schedule:
    """DualPipe: rank r holds (flow 0, stage r) and (flow 1, stage ranks - 1 - r).

    Flow 1 enters the model's stage 0 at the last rank. Each flow has half of the micro-batches;
    parameters are held twice, ranks + 1 activations at most.
    Raises ScheduleError unless both counts are even and micro_batches >= 2 x ranks.
    """
    require_counts("dualpipe", ranks, micro_batches)
    if ranks % 2:
        raise ScheduleError(
            f"dualpipe needs an even pipeline.ranks, got {ranks}: set pipeline.ranks to "
            f"{ranks + 1}, or pipeline.schedule to dualpipev"
        )
    _require_twice_the_ranks("dualpipe", ranks, micro_batches)
    if micro_batches % 2:
        raise ScheduleError(
            f"dualpipe needs an even pipeline.micro_batches, got {micro_batches}: set it to "
            f"{micro_batches + 1}"
        )
    half = ranks // 2
    programs = []
    for rank in range(ranks):
        places = ((0, rank), (1, ranks - 1 - rank))
        if rank < half:
            programs.append(_program(half, rank, micro_batches // 2, places))
        else:
            programs.append(_program(half, ranks - 1 - rank, micro_batches // 2, places[::-1]))
    placement = {(0, rank): rank for rank in range(ranks)}
    placement |= {(1, ranks - 1 - rank): rank for rank in range(ranks)}
    return Schedule("dualpipe", ranks, micro_batches, placement, tuple(programs))


def dualpipev(ranks: int, micro_batches: int) -> Schedule:
    """DualPipeV: rank r holds stages r and 2 x ranks - 1 - r of one flow.

    Parameters are held once, ranks + 1/2 activations at most (in full stages, two of these).
    Raises ScheduleError unless micro_batches >= 2 x ranks.
    """
    require_counts("dualpipev", ranks, micro_batches)
    _require_twice_the_ranks("dualpipev", ranks, micro_batches)
    programs = []
    placement: dict[Place, int] = {}
    for rank in range(ranks):
        places = ((0, rank), (0, 2 * ranks - 1 - rank))
        programs.append(_program(ranks, rank, micro_batches, places))
        placement |= dict.fromkeys(places, rank)
    return Schedule("dualpipev", ranks, micro_batches, placement, tuple(programs))


def _require_twice_the_ranks(name: str, ranks: int, micro_batches: int) -> None:
    least = 2 * ranks
    if micro_batches < least:
        raise ScheduleError(
            f"{name} needs pipeline.micro_batches >= 2 x pipeline.ranks = {least}, got "
            f"{micro_batches}: set pipeline.micro_batches to {least} or more"
        )


def _program(half: int, depth: int, micro_batches: int, places: tuple[Place, Place]) -> Program:
    """One rank's program.

    half: ranks from an end of the pipeline to its middle (to its turn, in a V); depth: this
    rank's distance from its end; micro_batches: of one phase; places: (flow, stage) of phases 0, 1.
    """
    rank = _Writer(places)
    inner = half - 1 - depth  # ranks between this one and the middle

    # Step 1: F0, to fill the ranks between here and the middle.
    for _ in range(2 * inner):
        rank.forward(0)

    # Step 2: F0 F1, the other phase has arrived.
    for _ in range(depth + 1):
        rank.forward(0)
        rank.forward(1)

    # Step 3: I1 W1 F1, the first backwards; the neighbour waits for the input gradient only.
    for _ in range(inner):
        rank.backward("I", 1)
        rank.weights()
        rank.forward(1)

    # Step 4: F0&B1 F1&B0, the steady state, where each pair hides its own communication.
    for turn in range(micro_batches - 2 * half + depth + 1):
        if turn == 0 and inner == 0:
            # In the middle the neighbour waits for this very forward: sent before the backward.
            rank.forward(0)
            rank.backward("B", 1)
        else:
            rank.overlap(0, 1)
        rank.overlap(1, 0)

    # Step 5: B1 F1&B0, phase 0 has no forwards left.
    for _ in range(inner):
        rank.backward("B", 1)
        rank.overlap(1, 0)

    # Step 6: B1 B0, no forwards left at all; the second half only I, so gradients leave sooner.
    for turn in range(2 * (depth + 1)):
        rank.backward("B" if turn <= depth else "I", 1 - turn % 2)

    # Step 7: W I0, weight gradients fill the wait for the last input gradients.
    for _ in range(inner):
        rank.weights()
        rank.backward("I", 0)

    # Step 8: W, what is left of them.
    for _ in range(depth + 1):
        rank.weights()

    return tuple(rank.items)


class _Writer:
    """Writes one rank's program, counting each phase's micro-batches as they go by."""

    def __init__(self, places: tuple[Place, Place]) -> None:
        self.items: list[Item] = []
        self._places = places
        self._forwards = [0, 0]
        self._backwards = [0, 0]
        self._left: deque[Action] = deque()  # weight gradients that I left, oldest first

    def forward(self, phase: int) -> None:
        self.items.append(self._next("F", phase))

    def backward(self, kind: Literal["B", "I"], phase: int) -> None:
        action = self._next(kind, phase)
        self.items.append(action)
        if kind == "I":
            self._left.append(Action("W", action.flow, action.stage, action.micro_batch))

    def overlap(self, forward_phase: int, backward_phase: int) -> None:
        self.items.append(Overlap(self._next("F", forward_phase), self._next("B", backward_phase)))

    def weights(self) -> None:
        self.items.append(self._left.popleft())

    def _next(self, kind: Literal["F", "B", "I"], phase: int) -> Action:
        counts = self._forwards if kind == "F" else self._backwards
        flow, stage = self._places[phase]
        counts[phase] += 1
        return Action(kind, flow, stage, counts[phase] - 1)
