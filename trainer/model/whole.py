"""The whole model on one process, for its logits rather than its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.expert.dispatch import LocalDispatcher
from parallel.expert.wire import PlainWire
from parallel.ops.ops import Ops
from parallel.tape.passes import run
from parallel.tape.tape import Tape
from trainer.config.schema import ModelConfig, RecomputeConfig
from trainer.model.attention import MLA
from trainer.model.moe import ExpertsHere
from trainer.model.options import LayerOptions
from trainer.model.part import ModelPart
from trainer.model.partition import moe_layers, partition_layers


def whole_model(
    model: ModelConfig, ops: Ops, sequence_length: int = 1, attention: type[MLA] = MLA
) -> ModelPart:
    """All parameters of a model, unset, as one process holds them."""
    options = LayerOptions(model, RecomputeConfig(), ops, sequence_length)
    here = ExpertsHere(
        tuple(range(model.moe.experts)), LocalDispatcher(model.moe.experts, PlainWire())
    )
    partition = partition_layers(model.layers, 1, model.mtp.depth)
    return ModelPart(options, partition, [0], dict.fromkeys(moe_layers(model), here), attention)


@dataclass(frozen=True)
class WholeModel:
    """Forward passes of `part`, made by `whole_model`, without a graph.

    T is any number of sequences of the part's sequence length, end to end.
    """

    part: ModelPart

    @torch.no_grad()
    def hidden(self, tokens_T: Tensor) -> Tensor:
        """Hidden states [T, D] after the final norm."""
        tape = Tape(training=False)
        x_TD = self.part.embed_tokens(tokens_T)
        for layer in range(self.part.options.model.layers):
            x_TD = run(self.part.layer(layer)(tape, x_TD))
        return self.part.norm(x_TD)

    @torch.no_grad()
    def mtp_hidden(self, depth: int, hidden_TD: Tensor, tokens_T: Tensor) -> Tensor:
        """Hidden states [T, D] after the norm of MTP module `depth`, counted from 1.

        hidden_TD: of the depth before, 0 being `hidden`. tokens_T: the token `depth` further on
        than the one at which each hidden state is.
        """
        tape = Tape(training=False)
        module = self.part.mtp_modules()[depth - 1]
        x_TD = run(module.predict(tape, hidden_TD, tokens_T, self.part.embed_tokens, None))
        return module.shared_head.norm(x_TD)

    def logits(self, normed_TD: Tensor) -> Tensor:
        """Logits [T, V] of the head that the model and its MTP modules share."""
        return nn.functional.linear(normed_TD, self.part.lm_head.weight.detach())
