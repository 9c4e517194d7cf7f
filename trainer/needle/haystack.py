"""Texts with pairs of a name and a number among words, and questions for numbers at their end.

A model that is trained on such texts learns to look names up; how far back it can is the length of
its context. Everything is plain ASCII, so that a byte is a character.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty",
    "knoll", "larch", "maple", "north", "ochre", "pearl", "quartz", "river", "stone", "thorn",
    "umber", "vale", "willow", "yarrow", "zephyr",
)  # fmt: skip
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PER_PAIR = 20  # characters of a text for each pair, with its questions and the words between
_ASKED = 3  # times that a pair is asked for in training: what is learnt is in the answers


@dataclass(frozen=True)
class Question:
    """text: ends with the question. answer: what comes next."""

    text: str
    answer: str


def training_text(length: int, random: np.random.RandomState) -> str:
    """About `length` characters: pairs such as K7 among words, and at the end questions for all of
    them, ?K7, some times over and in any order."""
    pairs = _pairs(length, random)
    again = random.permutation(_ASKED * len(pairs)) % len(pairs)
    asked = "".join(f" ?{pairs[i]}" for i in again)
    places = random.random_sample(len(pairs))
    return _scattered(pairs, places, length - len(asked), random) + asked


def question(length: int, depth: float, random: np.random.RandomState) -> Question:
    """For a pair at a depth, 0 at the start and 1 at the end, of a text of about `length`
    characters with as many other pairs as in training."""
    pairs = _pairs(length, random)
    places = np.concatenate(([depth], random.random_sample(len(pairs) - 1)))
    name, answer = pairs[0][0], pairs[0][1]
    return Question(f"{_scattered(pairs, places, length - 3, random)} ?{name}", answer)


def _pairs(length: int, random: np.random.RandomState) -> list[str]:
    """Names that differ, each with a digit."""
    count = min(max(1, length // _PER_PAIR), len(NAMES))
    names = random.permutation(len(NAMES))[:count]
    return [f"{NAMES[name]}{digit}" for name, digit in zip(names, random.randint(0, 10, count))]


def _scattered(
    pairs: list[str], places: np.ndarray, length: int, random: np.random.RandomState
) -> str:
    """The pairs among words, each at its share of the way."""
    words: list[str] = []
    left = length - sum(len(pair) + 1 for pair in pairs)
    while left > 0:
        words.append(WORDS[random.randint(len(WORDS))])
        left -= len(words[-1]) + 1
    start = 0
    parts: list[str] = []
    for number in np.argsort(places, kind="stable"):
        end = round(float(places[number]) * len(words))
        parts += [*words[start:end], pairs[number]]
        start = end
    return " ".join([*parts, *words[start:]])
