"""Small changes of a rank's turns, at random: what the search tries.

Each takes the turns and the position to change them at, and returns them changed, or None if that
change is not possible there. Whether the result can be followed is for a run to say.
"""

from __future__ import annotations

from random import Random

from parallel.study.search.turns import NONE, Turn, Turns

REACH = 8  # how far a turn moves at most, most often less


def change(turns: Turns, position: int, pairs: bool, random: Random) -> Turns | None:
    """`turns`, changed at or near `position`. pairs: whether pairs may be made."""
    draw = random.random()
    if draw < 0.5:
        return _move(turns, position, random)
    if draw < 0.65:
        return _exchange(turns, position, random)
    if turns[position].is_pair:
        return _unpair(turns, position, random)
    return _pair(turns, position, random) if pairs else None


def _distance(random: Random) -> int:
    return 1 + int(REACH * random.random() ** 3)


def _move(turns: Turns, position: int, random: Random) -> Turns:
    """A turn comes somewhat earlier or later."""
    distance = _distance(random)
    other = position + distance if random.random() < 0.5 else position - distance
    turns = turns[:]
    turns.insert(min(max(other, 0), len(turns) - 1), turns.pop(position))
    return turns


def _exchange(turns: Turns, position: int, random: Random) -> Turns | None:
    """A forward, or a backward, and the next one or the last one of another stage change places,
    whether they are in pairs or not."""
    part = 0 if turns[position].forward != NONE else 1
    if turns[position].is_pair:
        part = int(2 * random.random())
    stage = turns[position][part]
    step = 1 if random.random() < 0.5 else -1
    other = position + step
    while 0 <= other < len(turns) and turns[other][part] in (NONE, stage):
        other += step
    if not 0 <= other < len(turns):
        return None
    turns = turns[:]
    for place, new in ((position, turns[other][part]), (other, stage)):
        forward, backward = turns[place]
        turns[place] = Turn(forward, new) if part else Turn(new, backward)
    return turns


def _pair(turns: Turns, position: int, random: Random) -> Turns | None:
    """A forward and a backward nearby become a pair, at the place of either."""
    wanted = 0 if turns[position].forward == NONE else 1
    nearby = range(max(0, position - REACH), min(len(turns), position + REACH + 1))
    around = [p for p in nearby if not turns[p].is_pair and turns[p][wanted] != NONE]
    if not around:
        return None
    other = around[int(len(around) * random.random())]
    forward, backward = (position, other) if wanted else (other, position)
    kept, gone = (forward, backward) if random.random() < 0.5 else (backward, forward)
    changed = turns[:]
    changed[kept] = Turn(turns[forward].forward, turns[backward].backward)
    del changed[gone]
    return changed


def _unpair(turns: Turns, position: int, random: Random) -> Turns:
    """A pair becomes its forward and its backward, in either order, the second somewhat later."""
    parts = [Turn(forward=turns[position].forward), Turn(backward=turns[position].backward)]
    if random.random() < 0.5:
        parts.reverse()
    turns = turns[:]
    turns[position] = parts[0]
    turns.insert(position + _distance(random), parts[1])
    return turns
