"""A permutation of any size that is computed number by number: nothing of its length exists.

A keyed Feistel network permutes the numbers of as many bits as the largest needs; where it leaves
the range it is applied again, until it is back in it (cycle walking: Black and Rogaway, Ciphers
with arbitrary finite domains, CT-RSA 2002, section 3). Fewer than two applications are needed on
average.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64 bits (the finaliser of SplitMix64), in place."""
    with np.errstate(over="ignore"):
        x += _GOLDEN
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def hashed(*words: int) -> int:
    """A hash of numbers below 2^64, in their order."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state ^= np.uint64(word)
        mixed(state)
    return int(state[0])


@dataclass(frozen=True)
class Bijection:
    """Of 0 .. count - 1 onto themselves, another for each key."""

    count: int
    key: int

    def __call__(self, index: int) -> int:
        return int(self.of(np.array([index], dtype=np.uint64))[0])

    def of(self, index: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Of each of them, [n]."""
        out = self._network(index)
        while (outside := out >= self.count).any():
            out[outside] = self._network(out[outside])
        return out

    def _network(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits = max(2, (self.count - 1).bit_length())
        low_bits = np.uint64(bits // 2)
        low_mask = np.uint64((1 << bits // 2) - 1)
        high_mask = np.uint64((1 << bits - bits // 2) - 1)
        low, high = x & low_mask, x >> low_bits
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= mixed(high ^ key) & low_mask
            else:
                high ^= mixed(low ^ key) & high_mask
        return (high << low_bits) | low

    @cached_property
    def _keys(self) -> list[np.uint64]:
        return [np.uint64(hashed(self.key, number)) for number in range(_ROUNDS)]
