"""Small changes of a word, at random: what the search tries.

Each takes a word and the position to change it at, and returns the changed word, or None where
there is no such change. Whether the word can be followed is for `Orders.line` and `Run` to say.
"""

from __future__ import annotations

from random import Random

from parallel.pipeline.search.orders import (
    BACKWARD,
    BACKWARD_PHASE,
    FORWARD,
    FORWARD_PHASE,
    INPUT,
    PAIR,
    WEIGHTS,
    Word,
)

REACH = 8  # how far a letter moves at most, most often less


def propose(word: Word, position: int, pairs: bool, random: Random) -> Word | None:
    """`word`, changed at or near `position`. pairs: whether pairs may be made."""
    letter = word[position]
    draw = random.random()
    if draw < 0.5 or WEIGHTS <= letter < PAIR:
        return _move(word, position, random)
    if draw < 0.6:
        return _exchange_phases(word, position, random)
    if letter >= PAIR:
        return _unpair(word, position, random)
    if letter < INPUT or draw < 0.8:
        return _pair(word, position, random) if pairs else None
    if letter < BACKWARD:
        return _merge(word, position)
    return _split(word, position, random)


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
    around = [p for p in nearby if word[p] < WEIGHTS and wanted[word[p]] >= 0]
    if not around:
        return None
    other = around[int(len(around) * random.random())]
    forward, backward = (position, other) if letter < INPUT else (other, position)
    kept, gone = (forward, backward) if random.random() < 0.5 else (backward, forward)
    left_out = [gone]
    if word[backward] < BACKWARD:
        weights = _weights(word, backward)
        if weights is None:
            return None
        left_out = sorted((gone, weights), reverse=True)
    changed = word[:]
    changed[kept] = PAIR + 2 * (word[forward] - FORWARD) + word[backward] % 2
    for place in left_out:
        del changed[place]
    return changed


def _unpair(word: Word, position: int, random: Random) -> Word:
    """A pair becomes its forward and its backward, split or not, in either order."""
    letter = word[position]
    phase = BACKWARD_PHASE[letter]
    split = random.random() < 0.5
    parts = [FORWARD + FORWARD_PHASE[letter], (INPUT if split else BACKWARD) + phase]
    if random.random() < 0.5:
        parts.reverse()
    word = word[:position] + parts + word[position + 1 :]
    if split:
        word.insert(position + 1 + _distance(random), WEIGHTS + phase)
    return word


def _split(word: Word, position: int, random: Random) -> Word:
    """A B becomes its I, and its W somewhat later."""
    word = word[:]
    word[position] -= BACKWARD - INPUT
    word.insert(position + _distance(random), word[position] + WEIGHTS - INPUT)
    return word


def _merge(word: Word, position: int) -> Word | None:
    """An I, and the first W after it of its phase, become a B."""
    weights = _weights(word, position)
    if weights is None:
        return None
    word = word[:]
    word[position] += BACKWARD - INPUT
    del word[weights]
    return word


def _weights(word: Word, position: int) -> int | None:
    """Where the first W is that follows the I at `position` and is of its phase, if there is."""
    letter = word[position] + WEIGHTS - INPUT
    return word.index(letter, position) if letter in word[position:] else None
