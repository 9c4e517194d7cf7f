"""Multi-head latent attention (MLA), DeepSeek-V3 (arXiv 2412.19437) section 2.1.1, eq. 1 to 11.

Shapes: T = B x S tokens, D width, H heads, N and R the parts of a head without and with rotary
position, V the value of a head, Q and C the query and the key-value latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, linear
from trainer.config.schema import AttentionConfig, ModelConfig, RecomputeConfig
from trainer.model.matrix import Matrix
from trainer.model.norm import RMSNorm
from trainer.model.rope import rotate, rotations, softmax_scale


class MLA(nn.Module):
    """Attention whose keys and values come from one narrow latent a token.

    Three segments: down to the latents, norms and up again (recomputed if asked), and attention.
    """

    cos_SR: Tensor
    sin_SR: Tensor

    def __init__(
        self, model: ModelConfig, recompute: RecomputeConfig, sequence_length: int
    ) -> None:
        super().__init__()
        c: AttentionConfig = model.attention
        self.config, self.recompute, self.sequence_length = c, recompute, sequence_length
        query_dim = c.heads * (c.nope_head_dim + c.rope_head_dim)
        if c.q_lora_rank is None:
            self.q_proj = Matrix(query_dim, model.dim)
        else:
            self.q_a_proj = Matrix(c.q_lora_rank, model.dim)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, model.norm_eps)
            self.q_b_proj = Matrix(query_dim, c.q_lora_rank)
        self.kv_a_proj_with_mqa = Matrix(c.kv_lora_rank + c.rope_head_dim, model.dim)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, model.norm_eps)
        self.kv_b_proj = Matrix(c.heads * (c.nope_head_dim + c.v_head_dim), c.kv_lora_rank)
        self.o_proj = Matrix(model.dim, c.heads * c.v_head_dim)
        cos, sin = rotations(sequence_length, c)
        self.scale = softmax_scale(c)
        self.register_buffer("cos_SR", cos, persistent=False)
        self.register_buffer("sin_SR", sin, persistent=False)

    def forward(self, tape: Tape, x_TD: Tensor) -> Tensor:
        """Normalised x [T, D] -> attention's output [T, D]; sequences are S tokens each."""
        queue, recompute = tape.weight_gradients, self.recompute
        query_latent, latent_TC, key_TR = tape.compute(self.down, x_TD, queue)
        if self.config.q_lora_rank is not None:
            query_latent = tape.compute(
                self.q_a_layernorm.forward, query_latent, recompute=recompute.norm
            )
        latent_TC = tape.compute(self.kv_a_layernorm.forward, latent_TC, recompute=recompute.norm)
        query, key, value = tape.compute(
            self.up, query_latent, latent_TC, key_TR, queue, recompute=recompute.mla_up
        )
        return tape.compute(self.attend, query, key, value, queue)

    def down(self, x_TD: Tensor, queue: WeightGradients) -> tuple[Tensor, Tensor, Tensor]:
        """The query latent [T, Q] (all queries, flat, where there is none), the key-value latent
        [T, C], and the key with rotary position [T, R] that all heads share."""
        direct = self.config.q_lora_rank is None
        down = self.q_proj if direct else self.q_a_proj
        query = linear(x_TD, down.weight, queue)
        both = linear(x_TD, self.kv_a_proj_with_mqa.weight, queue)
        latent_TC, key_TR = both.split([self.config.kv_lora_rank, self.config.rope_head_dim], -1)
        return query, latent_TC.contiguous(), key_TR.contiguous()

    def up(
        self, query_latent: Tensor, latent_TC: Tensor, key_TR: Tensor, queue: WeightGradients
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, S, H, N + R] and values [B, S, H, V] from normalised latents."""
        c, S = self.config, self.sequence_length
        if c.q_lora_rank is not None:
            query_latent = linear(query_latent, self.q_b_proj.weight, queue)
        query = query_latent.view(-1, S, c.heads, c.nope_head_dim + c.rope_head_dim)
        query_nope, query_rope = query.split([c.nope_head_dim, c.rope_head_dim], -1)
        key_value = linear(latent_TC, self.kv_b_proj.weight, queue)
        key_value = key_value.view(-1, S, c.heads, c.nope_head_dim + c.v_head_dim)
        key_nope, value = key_value.split([c.nope_head_dim, c.v_head_dim], -1)
        query_rope = rotate(query_rope, self.cos_SR, self.sin_SR)
        key_rope = rotate(key_TR.view(-1, S, 1, c.rope_head_dim), self.cos_SR, self.sin_SR)
        key = torch.cat([key_nope, key_rope.expand(-1, -1, c.heads, -1)], -1)
        return torch.cat([query_nope, query_rope], -1), key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, queue: WeightGradients) -> Tensor:
        """Causal attention over each sequence and the projection of its output, [T, D]."""
        out_BHSV = nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            scale=self.scale,
        )
        out_TO = out_BHSV.transpose(1, 2).reshape(-1, self.config.heads * self.config.v_head_dim)
        return linear(out_TO, self.o_proj.weight, queue)
