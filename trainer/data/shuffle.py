"""Permutations that are the same on every machine, forever."""

import enum

import numpy as np
from numpy.typing import NDArray


class Purpose(enum.IntEnum):
    """What an order is for: each purpose has its own under the same seed."""

    SPLIT = 0
    DOCUMENTS = 1
    WINDOWS = 2


def permutation(count: int, seed: int, purpose: Purpose, epoch: int = 0) -> NDArray[np.int64]:
    """A permutation [count] of 0..count-1, a function of the arguments alone; seed in [0, 2^64)."""
    words = np.array([seed & 0xFFFFFFFF, seed >> 32, int(purpose), epoch], dtype=np.uint32)
    # RandomState, not Generator: numpy promises that its stream never changes between versions.
    return np.random.RandomState(words).permutation(count).astype(np.int64, copy=False)
