"""MLA over a cache of latents, with absorbed projections: DeepSeek-V2 (arXiv 2405.04434) section
2.1.2 and 2.1.3, DeepSeek-V3 (arXiv 2412.19437) section 2.1.1.

A head's key is W_UK c, so its product with a query q is (q W_UK) c: the query goes to the latent,
and no key is ever made. The same for values: softmax over latents first, then W_UV.

Shapes: T new tokens, H heads, N and R the parts of a head without and with rotary position, V the
value of a head, C the key-value latent, E = C + R. Of a block of the pass (latent_cache.py): B
texts, N new tokens of each, L tokens with those before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.tape.tape import Tape
from trainer.generate.latent_cache import Block, LayerCache
from trainer.model.attention import MLA
from trainer.model.options import LayerOptions


class CachedMLA(MLA):
    """MLA, by the same parameters, of new tokens over those of `cache` and themselves.

    Each forward pass keeps its tokens in the cache. The cache is on the module, which serves one
    set of texts at a time: trainer/generate/cached_model.py sets it before the first token.
    """

    cache: LayerCache

    def __init__(self, options: LayerOptions) -> None:
        super().__init__(options)
        c = self.config
        # Both projections down are one product; their weights are parts of one.
        query = self.q_proj if c.q_lora_rank is None else self.q_a_proj
        shared = self.kv_a_proj_with_mqa
        rows = [len(query.weight), len(shared.weight)]
        self._widths = [rows[0], c.kv_lora_rank, c.rope_head_dim]
        self._down = self.ops.parameter(sum(rows), options.model.dim).data
        for linear, weight in zip((query, shared), self._down.split(rows)):
            linear.weight = nn.Parameter(weight, requires_grad=False)
        both_HMC = self.kv_b_proj.weight.data.view(c.heads, -1, c.kv_lora_rank)
        key_up_HNC, value_up_HVC = both_HMC.split([c.nope_head_dim, c.v_head_dim], 1)
        self._key_up_HNC, self._value_up_HCV = key_up_HNC, value_up_HVC.transpose(1, 2)
        self._out = self.o_proj.weight.data
        self._query_up = None if c.q_lora_rank is None else self.q_b_proj.weight.data

    def forward(self, tape: Tape, x_TD: Tensor) -> Tensor:
        """Normalised x of the pass's new tokens [T, D] -> attention's output [T, D]."""
        reading = self.cache.all.reading
        linear = self.ops.linear
        query, latent_TC, key_TR = linear(x_TD, self._down).split_with_sizes(self._widths, -1)
        if self._query_up is not None:
            query = linear(self.q_a_layernorm.forward(query), self._query_up)
        key_T1R = turn(key_TR.unsqueeze(1), reading.rotation_T1R)
        self.cache.append(self.kv_a_layernorm.forward(latent_TC), key_T1R.squeeze(1))
        query_THE = self._against_latents(query, reading.rotation_T1R)
        blocks = [self._attend(query_THE, block) for block in reading.blocks]
        latent_THC = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        out_HTV = torch.bmm(latent_THC.transpose(0, 1), self._value_up_HCV)
        return linear(out_HTV.transpose(0, 1).flatten(1), self._out)

    def _against_latents(self, query: Tensor, rotation_T1R: Tensor) -> Tensor:
        """Queries [T, H (N + R)] of the heads -> against what the cache holds, [T, H, E]."""
        c = self.config
        query_THN, query_THR = query.view(len(query), c.heads, -1).split_with_sizes(
            [c.nope_head_dim, c.rope_head_dim], -1
        )
        query_HTC = torch.bmm(query_THN.transpose(0, 1), self._key_up_HNC)
        return torch.cat([query_HTC.transpose(0, 1), turn(query_THR, rotation_T1R)], -1)

    def _attend(self, query_THE: Tensor, block: Block) -> Tensor:
        """What the block's tokens look up, [B N, H, C]: sums of the latents that each sees."""
        H, B, N, L = query_THE.shape[1], block.B, block.N, block.L
        entries_BLE = self.cache.read(block)
        query_BQE = query_THE[block.rows].view(B, N * H, -1)  # Q queries of each text
        mask_BQL = block.mask_BNL
        if N > 1:
            mask_BQL = mask_BQL.unsqueeze(2).expand(B, N, H, L).reshape(B, N * H, L)
        key_BEL = entries_BLE.transpose(1, 2)
        weight_BQL = torch.baddbmm(mask_BQL, query_BQE, key_BEL, alpha=self.scale).softmax(-1)
        latent_BLC = entries_BLE[..., : self.config.kv_lora_rank]
        return torch.bmm(weight_BQL, latent_BLC).view(B * N, H, -1)


def turn(x_THR: Tensor, rotation_T1R: Tensor) -> Tensor:
    """Pairs (x[2i], x[2i + 1]) of x, as complex numbers, times their rotation."""
    T, H, R = x_THR.shape
    pairs = torch.view_as_complex(x_THR.view(T, H, R // 2, 2))
    return torch.view_as_real(pairs * rotation_T1R).view(T, H, R)
