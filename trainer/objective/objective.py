"""What a training step asks of an objective, beside what the model's stages do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from trainer.model.stage import MicroBatch, Objective
from trainer.recipe.recipe import StepRecipe


class TrainingObjective(Objective, Protocol):
    """An objective that a model is trained on.

    Each loss is a sum over the micro-batch, whose weight divides it by the number of targets in the
    step's global batch: gradients then only ever need to be summed, whatever the layout.
    """

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses that it adds to the tape."""

    @property
    def padding(self) -> Mapping[str, int]:
        """By field, the value that fills a sequence which has no target at all."""

    @property
    def varies(self) -> bool:
        """Whether sequences differ in how many targets they have."""

    def targets(self, sequences: int) -> Mapping[str, int]:
        """Of each loss in so many sequences, where these do not vary."""

    def count(self, micro_batch: MicroBatch) -> Mapping[str, int]:
        """Targets of each loss in some sequences."""

    def means(self, sums: Mapping[str, float], targets: Mapping[str, int]) -> dict[str, float]:
        """The means over targets to report, by name of the loss, "loss" first."""

    def weights(self, step: StepRecipe, targets: Mapping[str, int]) -> Mapping[str, float]:
        """Of each of these losses, in the total that a step differentiates. targets: of its global
        batch."""
