"""What a training step asks of an optimizer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Optimizer(Protocol):
    """Turns the gradients that the passes of one step have added up into new weights.

    Reduction, norm and clipping are its own, since one that shards its state reduces in its own
    way. Every method is collective over the world.
    """

    def zero(self) -> None:
        """Forget the gradients of the step before; the passes of a step may run after this."""

    def reduce(self) -> Tensor:
        """Sum every gradient over its copies; the global 2-norm, float64, each parameter once."""

    def step(self, norm: Tensor, learning_rate: float) -> None:
        """Clip by `norm`, which `reduce` has given, and update the weights."""
