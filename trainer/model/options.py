"""What every layer of a model is made from."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.context.exchange import ContextGroup
from parallel.expert.router import Choose, choose
from parallel.ops.ops import Ops
from trainer.config.schema import ModelConfig, RecomputeConfig


@dataclass(frozen=True)
class LayerOptions:
    """ops: makes the weights and multiplies with them. sequence_length: tokens of each
    sequence. choose: which experts a token goes to. context: the
    ranks that share sequences, if any."""

    model: ModelConfig
    recompute: RecomputeConfig
    ops: Ops
    sequence_length: int
    choose: Choose = choose
    context: ContextGroup | None = None

    @property
    def recompute_swiglu(self) -> bool:
        """By itself: where a whole layer is computed again, so is its SwiGLU."""
        return self.recompute.swiglu and not self.recompute.layer
