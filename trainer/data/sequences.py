"""What a run reads: running sequences, counted over all epochs, each computed from its number."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from trainer.data.tokens import Tokens


class Sequences(Protocol):
    """sequence_length: S, targets of each."""

    @property
    def sequence_length(self) -> int: ...

    def window(self, index: int) -> Tokens:
        """Tokens [S + 1 + lookahead] of running sequence `index`."""

    def origin(self, index: int) -> str:
        """Where these come from, for a person."""

    def epochs(self, sequences: int) -> dict[str, float]:
        """By name of the source, how often the first so many sequences go through it; "" where
        there is one."""


def windows(sequences: Sequences, first: int, count: int) -> Tokens:
    """Tokens [count, S + 1 + lookahead] of running sequences first .. first + count - 1."""
    return np.stack([sequences.window(index) for index in range(first, first + count)])


def micro_batch(
    sequences: Sequences, first: int, count: int, part: int, number: int, micro_batches: int
) -> torch.Tensor:
    """Tokens [count, S + 1 + lookahead] int64 of one micro-batch of one part of a batch.

    `first`: the running sequence that the step starts with, over all ranks. `count`: sequences of a
    micro-batch. The global batch of a step is the same under any layout: part p has its p-th
    contiguous piece, micro-batch m the m-th contiguous piece of that.
    """
    tokens = windows(sequences, first + (part * micro_batches + number) * count, count)
    return torch.from_numpy(tokens.astype(np.int64))
