"""The whole model on one process, for its logits rather than its losses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from parallel.expert.dispatch import LocalDispatcher
from parallel.tape.passes import run
from parallel.tape.tape import Tape
from trainer.config.schema import Config, MeshConfig
from trainer.model.attention import MLA
from trainer.model.part import ModelPart
from trainer.model.partition import Partition, partition_layers


def whole_partition(config: Config) -> Partition:
    """One stage that holds everything."""
    return partition_layers(config.model.layers, 1, config.model.mtp.depth)


def whole_model(config: Config, attention: type[MLA] = MLA) -> ModelPart:
    """All parameters of a model, unset, as one process holds them."""
    alone = replace(config, mesh=MeshConfig())
    return ModelPart(alone, whole_partition(alone), [0], LocalDispatcher(), attention)


@dataclass(frozen=True)
class WholeModel:
    """Forward passes of `part`, made by `whole_model(config)`, without a graph.

    T is any number of sequences of config.data.sequence_length tokens, end to end.
    """

    part: ModelPart
    config: Config

    def hidden(self, tokens_T: Tensor) -> Tensor:
        """Hidden states [T, D] behind the final norm."""
        x_TD = nn.functional.embedding(tokens_T, self.part.embed_tokens.weight.detach())
        tape = Tape(training=False)
        for layer in whole_partition(self.config).stage_layers(0):
            x_TD = run(self.part.layers[str(layer)](tape, x_TD))
        return tape.compute(self.part.norm.forward, x_TD)

    def mtp_hidden(self, depth: int, hidden_TD: Tensor, tokens_T: Tensor) -> Tensor:
        """Hidden states [T, D] behind the norm of MTP module `depth`, counted from 1.

        hidden_TD: of the depth before, 0 being `hidden`. tokens_T: the token `depth` further on
        than the one at which each hidden state is.
        """
        tape = Tape(training=False)
        module = self.part.mtp_module(self.config.model.layers + depth - 1)
        embed = self.part.embed_tokens.weight
        x_TD = run(module.predict(tape, hidden_TD, tokens_T, embed))
        return tape.compute(module.shared_head.norm.forward, x_TD)

    def logits(self, normed_TD: Tensor) -> Tensor:
        """Logits [T, V] of the head that the model and its MTP modules share."""
        return nn.functional.linear(normed_TD, self.part.lm_head.weight.detach())
