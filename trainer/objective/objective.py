"""What a training step asks of an objective, beside what the model's stages do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from trainer.model.stage import Objective
from trainer.recipe.recipe import StepRecipe


class TrainingObjective(Objective, Protocol):
    """An objective that a model is trained on.

    Each loss is a sum over the micro-batch, whose weight divides it by the size of the step's
    global batch: gradients then only ever need to be summed, whatever the layout.
    """

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses that it adds to the tape."""

    @property
    def padding(self) -> Mapping[str, int]:
        """By field, the value that fills a sequence which has no target at all."""

    def means(self, sums: Mapping[str, float], sequences: int) -> dict[str, float]:
        """The means over targets to report, by name of the loss, "loss" first. sums: of each loss
        over `sequences` sequences."""

    def weights(self, step: StepRecipe) -> Mapping[str, float]:
        """Of each of these losses, in the total that a step differentiates."""
