"""The part of the model that one rank holds: each parameter once, under its name in the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from parallel.expert.dispatch import Dispatcher
from trainer.config.schema import Config
from trainer.model.attention import MLA
from trainer.model.layer import Layer, MTPModule
from trainer.model.matrix import Matrix
from trainer.model.mlp import MLP
from trainer.model.moe import MoE
from trainer.model.norm import RMSNorm
from trainer.model.partition import Partition


class ModelPart(nn.Module):
    """Parameters of the stages that a rank holds.

    Names are those of the whole model (in the released checkpoints, behind a leading `model.`), so
    a parameter is called the same on every rank that holds a copy. The embedding, or the output
    head, that two stages of one rank share is one tensor. attention: the kind of its layers.
    """

    def __init__(
        self,
        config: Config,
        partition: Partition,
        stages: Iterable[int],
        dispatcher: Dispatcher,
        attention: type[MLA] = MLA,
    ) -> None:
        super().__init__()
        self._config, self._dispatcher, self._attention = config, dispatcher, attention
        model = config.model
        stages = sorted(set(stages))
        if partition.embedding_stages() & set(stages):
            self.embed_tokens = Matrix(model.vocab_size, model.dim)
        self.layers = nn.ModuleDict()
        for stage in stages:
            for index in partition.stage_layers(stage):
                self.layers[str(index)] = self._layer(index, Layer)
        if partition.last in stages:
            for index in partition.mtp_layers():
                self.layers[str(index)] = self._layer(index, MTPModule)
            self.norm = RMSNorm(model.dim, model.norm_eps)
            self.lm_head = Matrix(model.vocab_size, model.dim)

    def mtp_module(self, index: int) -> MTPModule:
        return cast(MTPModule, self.layers[str(index)])

    def _layer(self, index: int, kind: type[Layer]) -> Layer:
        model, recompute = self._config.model, self._config.recompute
        attention = self._attention(model, recompute, self._config.data.sequence_length)
        return kind(model, recompute, attention, self._mlp(index))

    def _mlp(self, index: int) -> MLP | MoE:
        config, model = self._config, self._config.model
        if index < model.dense_layers:
            return MLP(model.dim, model.dense_dim, config.recompute.swiglu)
        return MoE(
            f"layers.{index}",
            model,
            config.recompute,
            config.data.sequence_length,
            self._dispatcher,
            experts_here=model.moe.experts // config.mesh.expert,
            balance_weight=model.moe.balance_alpha / config.data.global_batch,
        )
