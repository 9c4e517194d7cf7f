"""Floating-point operations per token, by part of the model; a multiplication and an addition are
two.

Two conventions for the attention of one query to the keys of its sequence: causal counts those that
it may see, half of them; non-causal all. DeepSeek states its MFU by both, the main model without
MTP (arXiv 2505.09343, table 4). A backward is twice its forward: what kernels compute again is not
work that the model asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from trainer.config.schema import ModelConfig

BACKWARD_AND_FORWARD = 3


@dataclass(frozen=True)
class LayerFlops:
    """A forward of one token in one layer. projections: of attention, down, up and out. attention:
    queries with keys, and their weights with values."""

    projections: float = 0.0
    attention: float = 0.0
    dense: float = 0.0
    router: float = 0.0
    shared: float = 0.0
    routed: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class ModelFlops:
    """A forward of one token. layers: of the main model, by number. head: of one prediction. mtp:
    of one MTP module, its projection and its head not counted."""

    layers: tuple[LayerFlops, ...]
    head: float
    mtp: tuple[LayerFlops, ...]
    mtp_projection: float

    @property
    def main(self) -> float:
        """Of the main model: what it predicts the next token with."""
        return sum(layer.total for layer in self.layers) + self.head

    @property
    def all(self) -> float:
        """MTP modules included."""
        each = self.mtp_projection + self.head
        return self.main + sum(layer.total + each for layer in self.mtp)


def layer_flops(
    model: ModelConfig, index: int, sequence_length: int, causal: bool = True
) -> LayerFlops:
    """Of layer `index`; MTP modules are numbered on after the last layer."""
    a, moe, dim = model.attention, model.moe, model.dim
    query_dim = a.heads * (a.nope_head_dim + a.rope_head_dim)
    query = dim * query_dim
    if a.q_lora_rank is not None:
        query = a.q_lora_rank * (dim + query_dim)
    latent = dim * (a.kv_lora_rank + a.rope_head_dim)
    up = a.kv_lora_rank * a.heads * (a.nope_head_dim + a.v_head_dim)
    out = a.heads * a.v_head_dim * dim
    seen = (sequence_length + 1) / 2 if causal else sequence_length
    attention = 2 * seen * (query_dim + a.heads * a.v_head_dim)
    projections = 2 * (query + latent + up + out)
    if index < model.dense_layers:
        return LayerFlops(projections, attention, dense=6 * dim * model.dense_dim)
    expert = 6 * dim * moe.expert_dim
    return LayerFlops(
        projections,
        attention,
        router=2 * dim * moe.experts,
        shared=moe.shared_experts * expert,
        routed=moe.top_k * expert,
    )


def model_flops(model: ModelConfig, sequence_length: int, causal: bool = True) -> ModelFlops:
    """Of the whole model, for sequences of so many tokens."""
    layers = range(model.layers + model.mtp.depth)
    each = tuple(layer_flops(model, index, sequence_length, causal) for index in layers)
    return ModelFlops(
        layers=each[: model.layers],
        head=2 * model.dim * model.vocab_size,
        mtp=each[model.layers :],
        mtp_projection=2 * 2 * model.dim * model.dim,
    )


def flops_by_part(model: ModelConfig, sequence_length: int, causal: bool) -> dict[str, float]:
    """Training of one token by part of the main model, and by MTP modules, their heads included."""
    forward = model_flops(model, sequence_length, causal)
    parts = {
        field.name: sum(getattr(layer, field.name) for layer in forward.layers)
        for field in fields(LayerFlops)
    }
    parts |= {"head": forward.head, "mtp": forward.all - forward.main}
    return {name: BACKWARD_AND_FORWARD * flops for name, flops in parts.items()}


def training_flops(model: ModelConfig, sequence_length: int, causal: bool, mtp: bool) -> float:
    """Forward and backward of one token; mtp: MTP modules included."""
    forward = model_flops(model, sequence_length, causal)
    return BACKWARD_AND_FORWARD * (forward.all if mtp else forward.main)
