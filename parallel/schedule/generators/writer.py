"""Writes one rank's program, for schedules that are described by phases rather than by
micro-batches."""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

from parallel.schedule.table import Action, Item, Overlap, Program

Place: TypeAlias = tuple[int, int]


class Writer:
    """Counts each phase's micro-batches as they go by, and remembers the weights that I leaves.

    places: (flow, stage) of each phase. micro_batches: of each phase; those beyond that number are
    left out of the program, so that a schedule written for more can be run with fewer: whole
    micro-batches drop out, and the rest keep their order. What is left of a pair runs alone.
    """

    def __init__(self, places: tuple[Place, ...], micro_batches: int) -> None:
        self._items: list[Item] = []
        self._places = places
        self._micro_batches = micro_batches
        self._forwards = [0] * len(places)
        self._backwards = [0] * len(places)
        self._left: deque[Action] = deque()

    @property
    def program(self) -> Program:
        return tuple(self._items)

    def forward(self, phase: int = 0) -> None:
        self._add(self._next("F", phase))

    def backward(self, kind: Literal["B", "I"], phase: int = 0) -> None:
        action = self._next(kind, phase)
        self._add(action)
        if kind == "I":
            self._left.append(Action("W", action.flow, action.stage, action.micro_batch))

    def overlap(self, forward_phase: int, backward_phase: int) -> None:
        forward, backward = self._next("F", forward_phase), self._next("B", backward_phase)
        if max(forward.micro_batch, backward.micro_batch) < self._micro_batches:
            self._items.append(Overlap(forward, backward))
        else:
            self._add(forward)
            self._add(backward)

    def weights(self) -> None:
        """The oldest weight gradients that an I has left, of any phase."""
        self._add(self._left.popleft())

    def _add(self, action: Action) -> None:
        if action.micro_batch < self._micro_batches:
            self._items.append(action)

    def _next(self, kind: Literal["F", "B", "I"], phase: int) -> Action:
        counts = self._forwards if kind == "F" else self._backwards
        flow, stage = self._places[phase]
        counts[phase] += 1
        return Action(kind, flow, stage, counts[phase] - 1)
