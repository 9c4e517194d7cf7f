"""Causal attention: torch's kernel, in the type in which this machine is fast."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from parallel.ops.products import emulated


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale x query . key) value over positions up to each, [B, H, S, N] -> [B, H, S, V].

    The kernel sums and takes its softmax in float32 or wider.
    """
    if emulated(query):
        query, key, value = query.float(), key.float(), value.float()
        wide = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return wide.bfloat16()
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
