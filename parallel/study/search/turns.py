"""Turns: a rank's program in the words of the search.

A turn is the forward of a stage, or the backward of one, or both as a pair. The micro-batch is the
next of that stage, in order. Nothing is lost by this: in any table that can be followed, give the
n-th F of every stage micro-batch n, and the same for backwards. The n-th F of a stage starts after
n Fs of the stage before it have ended, so after the n-th of these has; the same holds for whatever
else an action needs, and no time changes.

There are no turns for weight gradients: these are put where a rank would idle (see run.py).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

from parallel.schedule.table import Action, Item, Overlap, Program, actions

NONE = -1


class Turn(NamedTuple):
    """The stages whose next forward and next backward a rank runs now, NONE for neither."""

    forward: int = NONE
    backward: int = NONE

    @property
    def is_pair(self) -> bool:
        return self.forward != NONE and self.backward != NONE


Turns: TypeAlias = list[Turn]


def turns_of(program: Program) -> Turns:
    """The turns of a program, its weight gradients left out."""
    turns = []
    for item in program:
        stages = {a.kind.replace("I", "B"): a.stage for a in actions(item)}
        if "W" not in stages:
            turns.append(Turn(stages.get("F", NONE), stages.get("B", NONE)))
    return turns


def program_of(turns: Turns, weights_before: Sequence[int], whole: Collection[int]) -> Program:
    """The program that a rank's turns stand for, in flow 0.

    weights_before: how many W come before each turn, oldest first; the others come last. whole: the
    positions of those lone backwards that are one B with their W, which comes right after them.
    """
    forwards: Counter[int] = Counter()
    backwards: Counter[int] = Counter()
    left: deque[Action] = deque()
    program: list[Item] = []
    done = 0
    for position, (forward, backward) in enumerate(turns):
        while done < weights_before[position]:
            program.append(left.popleft())
            done += 1
        ahead = Action("F", 0, forward, forwards[forward])
        back = Action("B", 0, backward, backwards[backward])
        forwards[forward] += 1
        backwards[backward] += 1
        if backward == NONE:
            program.append(ahead)
        elif forward != NONE:
            program.append(Overlap(ahead, back))
        elif position in whole:
            program.append(back)
            done += 1
        else:
            program.append(Action("I", *_place(back)))
            left.append(Action("W", *_place(back)))
    return *program, *left


def _place(action: Action) -> tuple[int, int, int]:
    return action.flow, action.stage, action.micro_batch
