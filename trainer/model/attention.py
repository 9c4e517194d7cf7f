"""Multi-head latent attention (MLA), DeepSeek-V3 (arXiv 2412.19437) section 2.1.1, eq. 1 to 11.

Shapes: T = B x S tokens, D width, H heads, N and R the parts of a head without and with rotary
position, V the value of a head, Q and C the query and the key-value latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.ops.ops import AttentionOutput, Linear, Operand
from parallel.tape.tape import Tape
from trainer.model.norm import RMSNorm
from trainer.model.options import LayerOptions
from trainer.model.places import Places
from trainer.model.rope import rotations, softmax_scale


class MLA(nn.Module):
    """Attention whose keys and values come from one narrow latent per token.

    Down to the latents, norms and up again (recomputed if asked), and attention.
    """

    cos_SR: Tensor
    sin_SR: Tensor

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        ops, model, c = options.ops, options.model, options.model.attention
        self.ops, self.config, self.recompute = ops, c, options.recompute
        self.sequence_length = options.sequence_length
        query_dim = c.heads * (c.nope_head_dim + c.rope_head_dim)
        if c.q_lora_rank is None:
            self.q_proj = Linear(ops, model.dim, query_dim)
        else:
            self.q_a_proj = Linear(ops, model.dim, c.q_lora_rank)
            self.q_a_layernorm = RMSNorm(ops, c.q_lora_rank, model.norm_eps)
            self.q_b_proj = Linear(ops, c.q_lora_rank, query_dim)
        self.kv_a_proj_with_mqa = Linear(ops, model.dim, c.kv_lora_rank + c.rope_head_dim)
        self.kv_a_layernorm = RMSNorm(ops, c.kv_lora_rank, model.norm_eps)
        self.kv_b_proj = Linear(ops, c.kv_lora_rank, c.heads * (c.nope_head_dim + c.v_head_dim))
        self.o_proj = AttentionOutput(ops, c.heads * c.v_head_dim, model.dim)
        cos, sin = rotations(options.sequence_length, c)
        self.scale = softmax_scale(c)
        self.register_buffer("cos_SR", ops.accurate(cos), persistent=False)
        self.register_buffer("sin_SR", ops.accurate(sin), persistent=False)

    def forward(self, tape: Tape, x_TD: Tensor, places: Places | None) -> Tensor:
        """Normalised x [T, D] -> attention's output [T, D]; sequences are S tokens each. places: of
        documents that keep to themselves."""
        query_latent, latent_TC, key_TR = self.latents(tape, x_TD)
        cos, sin = self.angles(places)
        query, key, value = tape.compute(
            self.up, query_latent, latent_TC, key_TR, cos, sin, recompute=self.recompute.mla_up
        )
        return self.attend(query, key, value, None if places is None else places.document_BS)

    def latents(self, tape: Tape, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `down` gives, the latents normalised."""
        recompute = self.recompute.norm
        x = self.ops.operand(tape, x_TD, recompute=recompute)
        query_latent, latent_TC, key_TR = self.down(x)
        if self.config.q_lora_rank is not None:
            query_latent = tape.compute(
                self.q_a_layernorm.forward, query_latent, recompute=recompute
            )
        latent_TC = tape.compute(self.kv_a_layernorm.forward, latent_TC, recompute=recompute)
        return query_latent, latent_TC, key_TR

    def angles(self, places: Places | None) -> tuple[Tensor, Tensor]:
        """cos and sin, of the positions of a sequence, or of each token."""
        if places is None:
            return self.cos_SR, self.sin_SR
        return self.cos_SR[places.position_T], self.sin_SR[places.position_T]

    def forward_of_chunks(
        self, tape: Tape, query_latent: Tensor, all_TE: Tensor, places: Places
    ) -> Tensor:
        """Attention of the queries here over whole sequences, [T, D]. all: latents and keys with
        position of all ranks of the context group, as they have come."""
        chunks, recompute = places.chunks, self.recompute.mla_up
        assert chunks is not None
        widths = [self.config.kv_lora_rank, self.config.rope_head_dim]
        both = (x.contiguous() for x in chunks.in_order(all_TE).split(widths, -1))
        key, value = tape.compute(self.keys_up, *both, *self.angles(None), recompute=recompute)
        query = tape.compute(
            self.queries_up, query_latent, *self.angles(places), recompute=recompute
        )
        query_BKHLW = query.view(-1, 2, chunks.chunk, *query.shape[1:]).transpose(2, 3)
        key, value = (
            each.unflatten(0, (-1, chunks.length)).transpose(1, 2) for each in (key, value)
        )
        out = [
            self.ops.attention(
                query_BKHLW[:, place], key[:, :, :end], value[:, :, :end], self.scale
            )
            for place, end in enumerate((number + 1) * chunks.chunk for number in chunks.own)
        ]
        out_BKHLV = torch.stack(out, 1)
        return self.o_proj(out_BKHLV.transpose(2, 3).reshape(len(query), -1))

    def down(self, x: Operand) -> tuple[Tensor, Tensor, Tensor]:
        """The query latent [T, Q] (all queries, flat, where there is none), the key-value latent
        [T, C], and the key with rotary position [T, R] that all heads share."""
        direct = self.config.q_lora_rank is None
        down = self.q_proj if direct else self.q_a_proj
        query = down(x)
        both = self.kv_a_proj_with_mqa(x)
        latent_TC, key_TR = both.split([self.config.kv_lora_rank, self.config.rope_head_dim], -1)
        return query, latent_TC.contiguous(), key_TR.contiguous()

    def up(
        self, query_latent: Tensor, latent_TC: Tensor, key_TR: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [T, H, N + R] and values [T, H, V] from normalised latents."""
        query_THW = self.queries_up(query_latent, cos, sin)
        return query_THW, *self.keys_up(latent_TC, key_TR, cos, sin)

    def queries_up(self, query_latent: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries [T, H, N + R]. cos, sin: of the positions of a sequence, or of all tokens."""
        if self.config.q_lora_rank is not None:
            query_latent = self.q_b_proj(query_latent)
        query_THW = query_latent.unflatten(-1, (self.config.heads, -1))
        return self.ops.kernels.rotary.queries(query_THW, cos, sin)

    def keys_up(
        self, latent_TC: Tensor, key_TR: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys [T, H, N + R] and values [T, H, V]."""
        c = self.config
        key_value = self.kv_b_proj(latent_TC).unflatten(-1, (c.heads, -1))
        key_THN, value_THV = key_value.split([c.nope_head_dim, c.v_head_dim], -1)
        return self.ops.kernels.rotary.keys(key_THN, key_TR, cos, sin), value_THV

    def attend(
        self, query_THW: Tensor, key_THW: Tensor, value_THV: Tensor, document_BS: Tensor | None
    ) -> Tensor:
        """Causal attention over each sequence and the projection of its output, [T, D]."""
        query, key, value = (
            each.unflatten(0, (-1, self.sequence_length)).transpose(1, 2)
            for each in (query_THW, key_THW, value_THV)
        )
        out_BHSV = self.ops.attention(query, key, value, self.scale, document_BS)
        out_TO = out_BHSV.transpose(1, 2).reshape(-1, self.config.heads * self.config.v_head_dim)
        return self.o_proj(out_TO)
