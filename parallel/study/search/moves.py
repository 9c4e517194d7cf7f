"""Small changes of a word, at random: what the search tries.

Each takes a word and the position to change it at, and returns the changed word, or None if the
change is not possible there. Whether the word can be followed is for `Orders.line` and `Run` to
say.
"""

from __future__ import annotations

from random import Random

from parallel.study.search.words import (
    BACKWARD_PHASE,
    FORWARD,
    FORWARD_PHASE,
    INPUT,
    PAIR,
    Word,
)

REACH = 8  # how far a letter moves at most, most often less


def propose(word: Word, position: int, pairs: bool, random: Random) -> Word | None:
    """`word`, changed at or near `position`. pairs: whether pairs may be made."""
    draw = random.random()
    if draw < 0.5:
        return _move(word, position, random)
    if draw < 0.65:
        return _exchange_phases(word, position, random)
    if word[position] >= PAIR:
        return _unpair(word, position, random)
    return _pair(word, position, random) if pairs else None


def _distance(random: Random) -> int:
    return 1 + int(REACH * random.random() ** 3)


def _move(word: Word, position: int, random: Random) -> Word:
    distance = _distance(random)
    other = position + distance if random.random() < 0.5 else position - distance
    word = word[:]
    word.insert(min(max(other, 0), len(word) - 1), word.pop(position))
    return word


def _exchange_phases(word: Word, position: int, random: Random) -> Word | None:
    """The phases of two forwards, or of two backwards, paired or not, change places."""
    letter = word[position]
    forward = letter < INPUT or (letter >= PAIR and random.random() < 0.5)
    phases = FORWARD_PHASE if forward else BACKWARD_PHASE
    step = 1 if random.random() < 0.5 else -1
    other = position + step
    while 0 <= other < len(word) and phases[word[other]] != 1 - phases[letter]:
        other += step
    if not 0 <= other < len(word):
        return None
    word = word[:]
    for place in (position, other):
        word[place] ^= 2 if forward and word[place] >= PAIR else 1
    return word


def _pair(word: Word, position: int, random: Random) -> Word | None:
    """A forward and a backward nearby become a pair, at the place of either."""
    letter = word[position]
    wanted = FORWARD_PHASE if letter >= INPUT else BACKWARD_PHASE
    nearby = range(max(0, position - REACH), min(len(word), position + REACH + 1))
    around = [p for p in nearby if word[p] < PAIR and wanted[word[p]] >= 0]
    if not around:
        return None
    other = around[int(len(around) * random.random())]
    forward, backward = (position, other) if letter < INPUT else (other, position)
    kept, gone = (forward, backward) if random.random() < 0.5 else (backward, forward)
    changed = word[:]
    changed[kept] = PAIR + 2 * (word[forward] - FORWARD) + word[backward] - INPUT
    del changed[gone]
    return changed


def _unpair(word: Word, position: int, random: Random) -> Word:
    """A pair becomes its forward and its backward, in either order, the second somewhat later."""
    letter = word[position]
    parts = [FORWARD + FORWARD_PHASE[letter], INPUT + BACKWARD_PHASE[letter]]
    if random.random() < 0.5:
        parts.reverse()
    word = word[:]
    word[position] = parts[0]
    word.insert(position + _distance(random), parts[1])
    return word
