"""What a training step and a checkpoint ask of an optimizer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trainer.optim.state import Fragment


class Optimizer(Protocol):
    """Turns the gradients that the passes of one step have added up into new weights.

    Reduction, norm and clipping are its own, since one that shards its state reduces in its own
    way. zero, reduce, step and loaded are collective over the world; the rest is not.
    """

    @property
    def updates(self) -> int:
        """Updates of the weights so far; a step that was skipped does not count."""

    def zero(self) -> None:
        """Forget the gradients of the step before; the passes of a step may run after this."""

    def reduce(self) -> Tensor:
        """Sum every gradient over its copies. The square of the 2-norm of what this rank counts of
        them, float64: each parameter counts on one rank, so that the step can add it up over the
        world along with the losses."""

    def step(self, norm: Tensor, learning_rate: float) -> None:
        """Clip by `norm`, the 2-norm of all gradients, and update the weights. A step that is to be
        skipped does not call this."""

    def state(self) -> list[Fragment]:
        """All state that this rank holds. "master" is there for every weight, in float32 or wider:
        where weights are that wide, it is the weight itself."""

    def loaded(self, updates: int) -> None:
        """Values have been copied into `state()`, of a run that has made so many updates: weights
        of lower precision follow from their masters."""
