"""Our layers without experts as plain modules under ordinary autograd, as one writes them who needs
no pipeline of ours: the same mathematics, weights and kernels, no tape.

Shapes: B sequences of S tokens, D width, H heads, N and R the parts of a head without and with
rotary position, V the value of a head, C the key-value latent.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from parallel.ops.attention import causal_attention
from parallel.ops.precision import PRECISIONS, accurate_type
from parallel.ops.rotary import ROTARY
from trainer.config.schema import Config, ModelConfig
from trainer.model.rope import rotations, softmax_scale


class PlainMLA(nn.Module):
    """Multi-head latent attention with a query latent."""

    cos_SR: Tensor
    sin_SR: Tensor

    def __init__(self, model: ModelConfig, sequence_length: int, angles: torch.dtype) -> None:
        super().__init__()
        c = self.config = model.attention
        assert c.q_lora_rank is not None  # trainer/bench/asked.py makes sure
        query_dim = c.heads * (c.nope_head_dim + c.rope_head_dim)
        self.q_a_proj = nn.Linear(model.dim, c.q_lora_rank, bias=False)
        self.q_a_layernorm = nn.RMSNorm(c.q_lora_rank, model.norm_eps)
        self.q_b_proj = nn.Linear(c.q_lora_rank, query_dim, bias=False)
        latent_dim = c.kv_lora_rank + c.rope_head_dim
        self.kv_a_proj_with_mqa = nn.Linear(model.dim, latent_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(c.kv_lora_rank, model.norm_eps)
        key_value_dim = c.heads * (c.nope_head_dim + c.v_head_dim)
        self.kv_b_proj = nn.Linear(c.kv_lora_rank, key_value_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.v_head_dim, model.dim, bias=False)
        self.scale = softmax_scale(c)
        cos_SR, sin_SR = rotations(sequence_length, c)
        self.register_buffer("cos_SR", cos_SR.to(angles), persistent=False)
        self.register_buffer("sin_SR", sin_SR.to(angles), persistent=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        c = self.config
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        query_BSHW = query.unflatten(-1, (c.heads, c.nope_head_dim + c.rope_head_dim))
        both = self.kv_a_proj_with_mqa(x_BSD)
        latent_BSC, key_BSR = both.split([c.kv_lora_rank, c.rope_head_dim], -1)
        key_value = self.kv_b_proj(self.kv_a_layernorm(latent_BSC))
        key_value = key_value.unflatten(-1, (c.heads, c.nope_head_dim + c.v_head_dim))
        key_nope, value_BSHV = key_value.split([c.nope_head_dim, c.v_head_dim], -1)
        angles = self.cos_SR, self.sin_SR
        query_THW = ROTARY.queries(query_BSHW.flatten(0, 1), *angles)
        key_THW = ROTARY.keys(key_nope.flatten(0, 1), key_BSR.flatten(0, 1), *angles)
        query_BSHW, key_BSHW = query_THW.view_as(query_BSHW), key_THW.view_as(query_BSHW)
        out_BHSV = causal_attention(
            query_BSHW.transpose(1, 2),
            key_BSHW.transpose(1, 2),
            value_BSHV.transpose(1, 2),
            self.scale,
        )
        return self.o_proj(out_BHSV.transpose(1, 2).flatten(-2))


class PlainMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))


class PlainLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, model: ModelConfig, sequence_length: int, angles: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(model.dim, model.norm_eps)
        self.self_attn = PlainMLA(model, sequence_length, angles)
        self.post_attention_layernorm = nn.RMSNorm(model.dim, model.norm_eps)
        self.mlp = PlainMLP(model.dim, model.dense_dim)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD))
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))


class PlainStage(nn.Module):
    """Some layers, with the embedding before the first and the head after the last; names of its
    parameters are those of ModelPart."""

    def __init__(self, config: Config, layers: Iterable[int], first: bool, last: bool) -> None:
        super().__init__()
        model, length = config.model, config.data.sequence_length
        precision = PRECISIONS[config.precision.parameters]
        self.first, self.last = first, last
        if first:
            self.embed_tokens = nn.Embedding(model.vocab_size, model.dim)
        self.layers = nn.ModuleDict(
            {str(n): PlainLayer(model, length, precision.accurate) for n in layers}
        )
        if last:
            self.norm = nn.RMSNorm(model.dim, model.norm_eps)
            self.lm_head = nn.Linear(model.dim, model.vocab_size, bias=False)
        for parameter in self.parameters():  # not the angles: they must not lose digits
            parameter.data = parameter.data.to(precision.parameters)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, S] where it is the first, else hidden states [B, S, D]; gives logits
        [B, S, vocabulary] where it is the last."""
        if self.first:
            x = self.embed_tokens(x)
        for layer in self.layers.values():
            x = layer(x)
        return self.lm_head(self.norm(x)) if self.last else x


def cross_entropy(logits: Tensor, target_BS: Tensor) -> Tensor:
    """The mean over all targets, in nats."""
    accurate = logits.to(accurate_type(logits.dtype))
    return nn.functional.cross_entropy(accurate.flatten(0, 1), target_BS.flatten())
