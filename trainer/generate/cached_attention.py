"""MLA over a cache of latents, with absorbed projections: DeepSeek-V2 (arXiv 2405.04434) section
2.1.2 and 2.1.3, DeepSeek-V3 (arXiv 2412.19437) section 2.1.1.

A head's key is W_UK c, so its product with a query q is (q W_UK) c: the query goes to the latent,
and no key is ever made. The same for values: softmax over latents first, then W_UV.

Shapes: T new tokens, L tokens with them, H heads, N and R the parts of a head without and with
rotary position, V the value of a head, C the key-value latent, E = C + R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.generate.latent_cache import LatentCache
from trainer.model.attention import MLA
from trainer.model.rope import rotate


class CachedMLA(MLA):
    """MLA, by the same parameters, of new tokens over those of `cache` and themselves.

    Each forward pass keeps its tokens in the cache. The cache is on the module, which serves one
    text at a time: trainer/generate/cached_model.py sets it before the first token.
    """

    cache: LatentCache

    def up(
        self, query_latent: Tensor, latent_TC: Tensor, key_TR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, H, E] against the latents, and what they look up: keys [L, E] and values
        [L, C], both views of the cache, which has the new tokens from here on."""
        c = self.config
        if c.q_lora_rank is not None:
            query_latent = self.q_b_proj(query_latent)
        query = query_latent.view(-1, c.heads, c.nope_head_dim + c.rope_head_dim)
        query_nope, query_rope = query.split([c.nope_head_dim, c.rope_head_dim], -1)
        key_up_HNC, _ = self._up_projections()
        query_THC = (query_nope.transpose(0, 1) @ key_up_HNC).transpose(0, 1)
        cos_TR, sin_TR = self.cache.next_rotations(len(key_TR))
        query_THR = rotate(query_rope, cos_TR, sin_TR)
        self.cache.append(latent_TC, rotate(key_TR.unsqueeze(1), cos_TR, sin_TR).squeeze(1))
        key_LE = self.cache.entries()
        return torch.cat([query_THC, query_THR], -1), key_LE, key_LE[:, : c.kv_lora_rank]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of the last T of L tokens, and the projection of its output, [T, D]."""
        T, H, L = len(query), self.config.heads, len(key)
        scores_THL = (query.flatten(0, 1) @ key.t()).view(T, H, L) * self.scale
        if T > 1:
            later_TL = torch.ones(T, L, dtype=torch.bool, device=query.device).triu(L - T + 1)
            scores_THL = scores_THL.masked_fill(later_TL.unsqueeze(1), float("-inf"))
        latent_THC = (scores_THL.softmax(-1).flatten(0, 1) @ value).view(T, H, -1)
        _, value_up_HVC = self._up_projections()
        out_HTV = latent_THC.transpose(0, 1) @ value_up_HVC.transpose(1, 2)
        return self.o_proj(out_HTV.transpose(0, 1).flatten(1))

    def _up_projections(self) -> tuple[Tensor, Tensor]:
        """Views of the keys' and the values' projection from the latent, [H, N, C], [H, V, C]."""
        c = self.config
        both = self.kv_b_proj.weight.view(c.heads, c.nope_head_dim + c.v_head_dim, c.kv_lora_rank)
        key_up_HNC, value_up_HVC = both.split([c.nope_head_dim, c.v_head_dim], 1)
        return key_up_HNC, value_up_HVC
