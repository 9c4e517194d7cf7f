"""Words of a text as numbers, and runs of words: what near repeats and evaluation texts share.

A word is a run of letters, digits and low lines, in lower case; where words are written without
blanks between them (Chinese, Japanese) it is one character.
"""

from __future__ import annotations

import re
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from trainer.data.bijection import mixed

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_MULTIPLIER = np.uint64(0xD1342543DE82EF95)  # odd: no bit of an earlier word is lost
_MOST_KNOWN = 1 << 20


def words_of(text: str) -> list[str]:
    """In their order."""
    return WORD.findall(text.lower())


class WordHashes:
    """Hashes of words, the same in every process; those of common words are computed once."""

    def __init__(self) -> None:
        self._known = _Known()

    def of(self, words: list[str]) -> NDArray[np.uint64]:
        """One of 64 bits for each, [n]."""
        if len(self._known) > _MOST_KNOWN:
            self._known = _Known()
        return np.fromiter(map(self._known.__getitem__, words), np.uint64, len(words))


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        digest = blake2b(word.encode(), digest_size=8).digest()
        number = self[word] = int.from_bytes(digest, "little")
        return number


def runs(hashes: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Of hashes of words [n], one for each run of `length` words, [max(n - length + 1, 0)]."""
    count = max(len(hashes) - length + 1, 0)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        found *= _MULTIPLIER
        found += hashes[place : place + count]
    return mixed(found)
