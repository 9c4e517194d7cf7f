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
from trainer.generate.inference_ops import InferenceOps
from trainer.generate.latent_cache import Block, LayerCache
from trainer.model.attention import MLA
from trainer.model.options import LayerOptions
from trainer.model.places import Places


class CachedMLA(MLA):
    """MLA, by the same parameters, of new tokens over those of `cache` and themselves.

    Each forward pass keeps its tokens in the cache. The cache is on the module, which serves one
    set of texts at a time: trainer/generate/cached_model.py sets it before the first token.
    """

    cache: LayerCache

    def __init__(self, options: LayerOptions) -> None:
        super().__init__(options)
        assert isinstance(options.ops, InferenceOps)
        c, self._ops = self.config, options.ops
        # Both projections down are one product; their weights are parts of one.
        query = self.q_proj if c.q_lora_rank is None else self.q_a_proj
        shared = self.kv_a_proj_with_mqa
        rows = [len(query.weight), len(shared.weight)]
        self._widths = [rows[0], c.kv_lora_rank, c.rope_head_dim]
        self._query_widths = [c.nope_head_dim, c.rope_head_dim]
        self._down = self._ops.parameter(sum(rows), options.model.dim).data
        for linear, weight in zip((query, shared), self._down.split(rows)):
            linear.weight = nn.Parameter(weight, requires_grad=False)
        both_HMC = self.kv_b_proj.weight.data.view(c.heads, -1, c.kv_lora_rank)
        key_up_HNC, value_up_HVC = both_HMC.split([c.nope_head_dim, c.v_head_dim], 1)
        self._key_up_HNC, self._value_up_HCV = key_up_HNC, value_up_HVC.transpose(1, 2)
        self._out = self.o_proj.weight.data
        self._query_up = None if c.q_lora_rank is None else self.q_b_proj.weight.data

    def forward(self, tape: Tape, x_TD: Tensor, places: Places | None) -> Tensor:
        """Normalised x of the pass's new tokens [T, D] -> attention's output [T, D]. Each text is a
        document."""
        return self._ops.linear(self._look_up(x_TD), self._out)

    def add_to(self, x_TD: Tensor, n_TD: Tensor) -> Tensor:
        """x plus the attention's output for its normalised n."""
        return self._ops.add_linear(x_TD, self._look_up(n_TD), self._out)

    def _look_up(self, n_TD: Tensor) -> Tensor:
        """The values that the heads find, [T, H V]."""
        c, reading, linear = self.config, self.cache.all.reading, self._ops.linear
        query, latent_TC, key_TR = linear(n_TD, self._down).split_with_sizes(self._widths, -1)
        if self._query_up is not None:
            query = linear(self.q_a_layernorm.forward(query), self._query_up)
        query_THN, query_THR = query.view(len(query), c.heads, -1).split_with_sizes(
            self._query_widths, -1
        )
        rotary_TJR = self._ops.accurate(torch.cat([query_THR, key_TR.unsqueeze(1)], 1))  # J = H + 1
        turn(rotary_TJR, reading.rotation_T1R)
        query_THR, key_T1R = rotary_TJR.split_with_sizes([c.heads, 1], 1)
        self.cache.append(self.kv_a_layernorm.forward(latent_TC), key_T1R.squeeze(1))
        query_HTC = torch.bmm(query_THN.transpose(0, 1), self._key_up_HNC)
        query_THE = torch.cat([query_HTC.transpose(0, 1), query_THR], -1)
        blocks = [self._attend(query_THE, block) for block in reading.blocks]
        latent_THC = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        latent_HTC = latent_THC.to(n_TD.dtype).transpose(0, 1)
        out_HTV = torch.bmm(latent_HTC, self._value_up_HCV)
        return out_HTV.transpose(0, 1).flatten(1)

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


def turn(x_THR: Tensor, rotation_T1R: Tensor) -> None:
    """Multiply pairs (x[2i], x[2i + 1]) of x, contiguous, as complex numbers, in place."""
    T, H, R = x_THR.shape
    torch.view_as_complex(x_THR.view(T, H, R // 2, 2)).mul_(rotation_T1R)
