"""Causal attention: by the kernel that is pinned, in the shape and type in which it is fast."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from parallel.ops.products import emulated

AttentionKernel: TypeAlias = Literal["flash3", "cudnn", "flash", "efficient", "math"]
KERNELS: tuple[AttentionKernel, ...] = get_args(AttentionKernel)
"""Fastest first, as published for Hopper."""

_SHORT = 256  # positions up to which a CPU's kernel takes up to twice as long in bfloat16
_OF_TORCH = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
}


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    kernel: AttentionKernel | None = None,
    document_BS: Tensor | None = None,
) -> Tensor:
    """softmax(scale x query . key) value over positions up to each, [B, H, S, N] -> [B, H, S, V];
    where document_BS is given, over those with its number. Queries may be the last of the keys'
    positions alone.

    The kernel sums and takes its softmax in float32 or wider. kernel: which one, as
    attention_kernel.py chooses it; torch's choice where not given, and with documents, for which
    few have a mask. Raises RuntimeError where it cannot run, ImportError where it is not installed.
    """
    short = query.dtype == torch.bfloat16 and query.shape[-2] <= _SHORT
    if emulated(query) or (short and query.device.type == "cpu"):
        wide = (query.float(), key.float(), value.float())
        return causal_attention(*wide, scale, kernel, document_BS).bfloat16()
    narrower = query.shape[-1] - value.shape[-1]
    if narrower > 0 and query.device.type == "cpu" and kernel in (None, "flash"):
        # On the CPU torch has a fused kernel for values as wide as queries only.
        padded = pad(value, (0, narrower))
        return causal_attention(query, key, padded, scale, kernel, document_BS)[..., :-narrower]
    if document_BS is not None or query.shape[-2] < key.shape[-2]:
        mask = _up_to_each(query, key) if document_BS is None else _within_documents(document_BS)
        return scaled_dot_product_attention(query, key, value, mask, scale=scale)
    if kernel == "flash3":
        return _flash3(query, key, value, scale)
    if kernel is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    with sdpa_kernel(_OF_TORCH[kernel]):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def _up_to_each(query: Tensor, key: Tensor) -> Tensor:
    """[queries, keys]: whether a query, the last of them at the last key, sees a key."""
    queries, keys = query.shape[-2], key.shape[-2]
    every = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return every.tril_(keys - queries)


def _within_documents(document_BS: Tensor) -> Tensor:
    """[B, 1, S, S]: whether a position (the last but one dimension) sees another."""
    same_BSS = document_BS.unsqueeze(2) == document_BS.unsqueeze(1)
    return same_BSS.tril_().unsqueeze(1)


def _flash3(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """By FlashAttention 3, which has positions before heads; its result is in that order, too."""
    from flash_attn_interface import flash_attn_func

    by_position = (x.transpose(1, 2) for x in (query, key, value))
    out_BSHV = flash_attn_func(*by_position, softmax_scale=scale, causal=True)
    # Versions before its 3.0 also return log-sum-exp.
    out_BSHV = out_BSHV if isinstance(out_BSHV, Tensor) else out_BSHV[0]
    return out_BSHV.transpose(1, 2)
