"""Choosing the next token by its logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from trainer.errors import RunError

Choose: TypeAlias = Callable[[Tensor, Sequence[int]], list[int]]
"""A token for each row of logits [B, V]; with them goes the number of each text, which is the same
whatever other texts there are. Raises NotFinite for what are no numbers."""


class NotFinite(RunError):
    """The model computed no numbers. row: of the logits, where it did not."""

    def __init__(self, row: int) -> None:
        super().__init__(
            "the model's logits are not finite, so no token is the most likely: its weights are "
            "too large for --dtype, or were saved after training had failed"
        )
        self.row = row


def require_finite(logits_TV: Tensor) -> None:
    """Raise NotFinite unless the model computed numbers."""
    # The sum is not finite where a number is not, and one kernel.
    if not math.isfinite(logits_TV.sum().item()):
        bad_T = ~logits_TV.isfinite().all(-1)
        if bad_T.any():
            raise NotFinite(int(bad_T.int().argmax()))


def greedy(logits_BV: Tensor, numbers: Sequence[int]) -> list[int]:
    """The most likely tokens."""
    return most_likely(logits_BV)


def most_likely(logits_TV: Tensor) -> list[int]:
    """The greedy choice of each row; the first of equals. Raises NotFinite."""
    require_finite(logits_TV)
    return logits_TV.argmax(-1).tolist()


class Sampler:
    """A random choice by the softmax of logits / temperature within the nucleus of top_p.

    Text n draws from a generator of its own, with the seed `seed` + n.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        """temperature: more than 0."""
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._generators: dict[int, torch.Generator] = {}

    def __call__(self, logits_BV: Tensor, numbers: Sequence[int]) -> list[int]:
        require_finite(logits_BV)
        probability_BV = (logits_BV.double() / self._temperature).softmax(-1)
        if self._top_p < 1:
            probability_BV = nucleus(probability_BV, self._top_p)
        # The smallest of exponential times by these rates is a draw from them (as multinomial's).
        time_BV = torch.empty_like(probability_BV)
        for time_V, number in zip(time_BV, numbers, strict=True):
            time_V.exponential_(generator=self._generator(number))
        return (probability_BV / time_BV).argmax(-1).tolist()

    def _generator(self, number: int) -> torch.Generator:
        if number not in self._generators:
            self._generators[number] = torch.Generator().manual_seed(self._seed + number)
        return self._generators[number]


def nucleus(probability: Tensor, top_p: float) -> Tensor:
    """Probabilities [..., V], 0 outside of the smallest set of most likely tokens that has top_p of
    them together (arXiv 1904.09751, section 3.1); they are not scaled up to 1."""
    ordered, order = probability.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probability).scatter(-1, order, ordered * (before < top_p))
