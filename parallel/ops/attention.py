"""Causal attention: torch's kernel, in the shape and the type in which this machine is fast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from parallel.ops.products import emulated

_SHORT = 256  # positions up to which a CPU's kernel takes up to twice as long in bfloat16


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale x query . key) value over positions up to each, [B, H, S, N] -> [B, H, S, V].

    The kernel sums and takes its softmax in float32 or wider.
    """
    short = query.dtype == torch.bfloat16 and query.shape[-2] <= _SHORT
    if emulated(query) or (short and query.device.type == "cpu"):
        wide = causal_attention(query.float(), key.float(), value.float(), scale)
        return wide.bfloat16()
    narrower = query.shape[-1] - value.shape[-1]
    if narrower > 0 and query.device.type == "cpu":
        # On the CPU torch has a fused kernel for values as wide as queries only.
        wide = causal_attention(query, key, pad(value, (0, narrower)), scale)
        return wide[..., :-narrower]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
