"""One stage's forward pass: the way of a token through the layers that a stage holds.

What the model computes is here and in the layers, written forward only; the tape gives the
backward, the executor the order, the objective what is computed after the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients
from trainer.model.part import ModelPart
from trainer.model.partition import Partition
from trainer.model.places import Places

MicroBatch: TypeAlias = Mapping[str, Tensor]
"""Fields of some sequences by name, [B, ...] each; which ones, the objective says."""


class Objective(Protocol):
    """What is computed of the hidden states after the last layer, and from which fields."""

    def tokens(self, micro_batch: MicroBatch) -> Tensor:
        """The tokens that the first stage embeds, [B x S]."""

    def places(self, micro_batch: MicroBatch) -> Places | None:
        """Where the tokens are, unless in sequences end to end; every stage asks."""

    def compute(
        self, tape: Tape, part: ModelPart, x_TD: Tensor, micro_batch: MicroBatch
    ) -> Pass[None]:
        """Add losses or tallies to the tape. x_TD: of the last layer, before the final norm."""


@dataclass(frozen=True)
class ModelStage:
    """Stage `index` of the model, on the parameters of `part`."""

    index: int
    part: ModelPart
    partition: Partition
    objective: Objective

    @property
    def deferred(self) -> WeightGradients:
        """Where the layers leave their weight gradients."""
        return self.part.options.ops.deferred

    def forward(self, tape: Tape, x: Tensor | None, micro_batch: MicroBatch) -> Pass[Tensor | None]:
        """x, and the result: hidden state [B x S, D]; the first stage takes none, the last returns
        none."""
        places = self.objective.places(micro_batch)
        if self.index == 0:
            tokens_T = self.objective.tokens(micro_batch)
            tape.layer = "embedding"
            x = self.part.embed_tokens(tokens_T)
        for layer in self.partition.stage_layers(self.index):
            tape.layer = f"layer {layer}"
            x = yield from self.part.layer(layer)(tape, x, places)
        if self.index < self.partition.last or x is None:
            return x
        yield from self.objective.compute(tape, self.part, x, micro_batch)
        return None
