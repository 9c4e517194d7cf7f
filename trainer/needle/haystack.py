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
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PAIR, _QUESTION = len("AB=12;"), len("?AB=12;")


@dataclass(frozen=True)
class Question:
    """text: ends with the question. answer: what comes next."""

    text: str
    answer: str


def training_text(length: int, random: np.random.RandomState) -> str:
    """About `length` characters: pairs, a fifth of it with its questions, and all of these asked
    for at the end, in any order."""
    count = max(1, length // (5 * (_PAIR + _QUESTION) // 2))
    pairs = _pairs(count, random)
    filler = length - count * (_PAIR + _QUESTION)
    asked = "".join(f"?{pairs[i]}" for i in random.permutation(count))
    return _scattered(pairs, random.random_sample(count), filler, random) + asked


def question(length: int, depth: float, random: np.random.RandomState) -> Question:
    """For a pair at a depth, 0 at the start and 1 at the end, of a text of `length` characters with
    as many other pairs as in training."""
    count = max(1, length // (5 * (_PAIR + _QUESTION) // 2))
    pairs = _pairs(count, random)
    places = np.concatenate(([depth], random.random_sample(count - 1)))
    text = _scattered(pairs, places, length - count * _PAIR - _QUESTION, random)
    name, answer = pairs[0][:3], pairs[0][3:]
    return Question(f"{text}?{name}", answer)


def _pairs(count: int, random: np.random.RandomState) -> list[str]:
    """Names that differ, each with a number."""
    numbers = random.choice(len(_LETTERS) ** 2, count, replace=False)
    values = random.randint(0, 100, count)
    names = (_LETTERS[n // len(_LETTERS)] + _LETTERS[n % len(_LETTERS)] for n in numbers)
    return [f"{name}={value:02d};" for name, value in zip(names, values)]


def _scattered(
    pairs: list[str], places: np.ndarray, filler: int, random: np.random.RandomState
) -> str:
    """The pairs among words, each at its share of the way."""
    words = " ".join(WORDS[i] for i in random.randint(0, len(WORDS), filler // 4 + 2))[:filler]
    parts, start = [], 0
    for number in np.argsort(places, kind="stable"):
        end = int(places[number] * len(words))
        parts += [words[start:end], pairs[number]]
        start = end
    return "".join([*parts, words[start:]])
