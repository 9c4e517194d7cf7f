"""The part of the model that one rank holds: each parameter once, under its name in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from parallel.ops.ops import Embedding, Linear
from trainer.model.attention import MLA
from trainer.model.layer import Layer, MTPModule
from trainer.model.mlp import MLP
from trainer.model.moe import ExpertsHere, MoE
from trainer.model.norm import RMSNorm
from trainer.model.options import LayerOptions
from trainer.model.partition import Partition, layer_name


class ModelPart(nn.Module):
    """Parameters of the stages that a rank holds.

    Names are those of the whole model (in the released checkpoints, after a leading `model.`), so
    a parameter is called the same on every rank that holds a copy. The embedding, or the output
    head, that two stages of one rank share is one tensor.
    """

    def __init__(
        self,
        options: LayerOptions,
        partition: Partition,
        stages: Iterable[int],
        experts: Mapping[int, ExpertsHere],
        attention: type[MLA] = MLA,
    ) -> None:
        """experts: by layer, what an MoE layer needs to know of its experts and their ranks.
        attention: the kind of its layers."""
        super().__init__()
        ops, model = options.ops, options.model
        stages = sorted(set(stages))
        self.options, self._experts, self._attention = options, experts, attention
        self._mtp_layers = partition.mtp_layers()
        if partition.embedding_stages() & set(stages):
            self.embed_tokens = Embedding(ops, model.vocab_size, model.dim)
        self.layers = nn.ModuleDict()
        for stage in stages:
            for index in partition.stage_layers(stage):
                self.layers[str(index)] = self._layer(index, Layer)
        if partition.last in stages:
            for index in self._mtp_layers:
                self.layers[str(index)] = self._layer(index, MTPModule)
            self.norm = RMSNorm(ops, model.dim, model.norm_eps)
            self.lm_head = Linear(ops, model.dim, model.vocab_size)

    def layer(self, index: int) -> Layer:
        return cast(Layer, self.layers[str(index)])

    def mtp_modules(self) -> list[MTPModule]:
        """The MTP modules by depth; the part holds the last stage."""
        return [cast(MTPModule, self.layers[str(index)]) for index in self._mtp_layers]

    def _layer(self, index: int, kind: type[Layer]) -> Layer:
        return kind(self.options, self._attention(self.options), self._mlp(index))

    def _mlp(self, index: int) -> MLP | MoE:
        model = self.options.model
        if index < model.dense_layers:
            return MLP(self.options, model.dense_dim)
        return MoE(self.options, layer_name(index), self._experts[index])
