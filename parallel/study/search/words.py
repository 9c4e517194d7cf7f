"""Tables on a V as words: what the search changes.

On a V, rank r holds stage r, its phase 0, and stage 2P - 1 - r, its phase 1. A letter says what is
computed and of which phase; the micro-batch is the next of that kind and phase. Nothing is lost by
this. In any table that can be followed, give the n-th F of every stage micro-batch n, and the same
for backwards; the n-th F of a stage starts after n Fs of the stage before it have ended, so after
the n-th of these has; the same holds for whatever else an action needs. No time changes.

A word has no W: these are put where a rank would idle (see `run`).
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from parallel.schedule.table import Action, Item, Overlap, Program, Schedule

SEARCHED = "searched"  # the name of a table that has been found
# F0 F1 I0 I1, then the pairs F0&B0 F0&B1 F1&B0 F1&B1.
FORWARD, INPUT, PAIR, LETTERS = 0, 2, 4, 8
FORWARD_PHASE = (0, 1, -1, -1, 0, 0, 1, 1)
BACKWARD_PHASE = (-1, -1, 0, 1, 0, 1, 0, 1)

Word: TypeAlias = list[int]


def stage_of(rank: int, phase: int, ranks: int) -> int:
    """The stage that is this phase of a rank."""
    return 2 * ranks - 1 - rank if phase else rank


def words_of(schedule: Schedule, pairs: list[bool]) -> list[Word]:
    """The words of a table on a V. pairs: by rank; if not, a pair becomes its B and then its F."""
    words: list[Word] = []
    for rank, program in enumerate(schedule.programs):
        word: Word = []
        for item in program:
            if isinstance(item, Overlap):
                forward, backward = (a.stage != rank for a in (item.forward, item.backward))
                pair = [PAIR + 2 * forward + backward]
                word += pair if pairs[rank] else [INPUT + backward, FORWARD + forward]
            elif item.kind != "W":
                word.append((FORWARD if item.kind == "F" else INPUT) + (item.stage != rank))
        words.append(word)
    return words


def program_of(word: Word, filled: list[int], whole: set[int], rank: int, ranks: int) -> Program:
    """The program that a rank's word stands for.

    filled: how many Ws come before each letter; the others come last. whole: the positions of
    those I that are one B with their W.
    """
    counts = [0, 0, 0, 0]  # of F0, F1 and of the backwards of phases 0 and 1
    left: deque[Action] = deque()
    program: list[Item] = []
    done = 0

    def next_of(letter: int) -> tuple[int, int]:
        counts[letter] += 1
        return stage_of(rank, letter % 2, ranks), counts[letter] - 1

    for position, letter in enumerate(word):
        while done < filled[position]:
            program.append(left.popleft())
            done += 1
        forward, backward = FORWARD_PHASE[letter], BACKWARD_PHASE[letter]
        if letter >= PAIR:
            first = Action("F", 0, *next_of(FORWARD + forward))
            program.append(Overlap(first, Action("B", 0, *next_of(INPUT + backward))))
        elif letter < INPUT:
            program.append(Action("F", 0, *next_of(letter)))
        else:
            place = next_of(letter)
            if position in whole:
                program.append(Action("B", 0, *place))
                done += 1
            else:
                program.append(Action("I", 0, *place))
                left.append(Action("W", 0, *place))
    return *program, *left
