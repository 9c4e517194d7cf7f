"""Choosing the next token by its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.errors import RunError


def most_likely(logits_V: Tensor) -> int:
    """The greedy choice; the first of equals. Raises RunError for what is not finite."""
    require_finite(logits_V)
    return int(logits_V.argmax())


def require_finite(logits: Tensor) -> None:
    """Raise RunError unless the model computed numbers."""
    if not bool(logits.isfinite().all()):
        raise RunError(
            "the model's logits are not finite, so no token is the most likely: its weights are "
            "too large for --dtype, or were saved after training had failed"
        )


@dataclass(frozen=True)
class Sampler:
    """A random choice by the softmax of logits / temperature within the nucleus of top_p.

    temperature: more than 0. generator: where the randomness comes from.
    """

    temperature: float
    top_p: float
    generator: torch.Generator

    def __call__(self, logits_V: Tensor) -> int:
        """Raises RunError for what is not finite."""
        require_finite(logits_V)
        probability_V = nucleus((logits_V.double() / self.temperature).softmax(-1), self.top_p)
        return int(torch.multinomial(probability_V, 1, generator=self.generator))


def nucleus(probability_V: Tensor, top_p: float) -> Tensor:
    """Probabilities [V], 0 outside of the smallest set of most likely tokens that has top_p of
    them together (arXiv 1904.09751, section 3.1); they are not scaled up to 1."""
    sorted_V, order_V = probability_V.sort(descending=True, stable=True)
    before_V = sorted_V.cumsum(-1) - sorted_V
    kept_V = sorted_V * (before_V < top_p)
    return torch.zeros_like(probability_V).scatter(-1, order_V, kept_V)
