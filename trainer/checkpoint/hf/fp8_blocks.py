"""fp8 weights in blocks of 128 x 128, as the released DeepSeek-V3 checkpoints store them.

A weight is float8_e4m3fn [O, I]; beside it stands weight_scale_inv, float32 [ceil(O/128),
ceil(I/128)], and W = weight * weight_scale_inv, each block by its own factor (README_WEIGHTS.md of
deepseek-ai/DeepSeek-V3). Blocks at the edges are smaller where 128 does not divide.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.errors import CheckpointError

BLOCK = 128
SCALE_SUFFIX = "_scale_inv"

_CODE_MAX = torch.finfo(torch.float8_e4m3fn).max  # 448
# Smaller maxima count as this, as in DeepGEMM's per_block_cast_to_fp8, so that zeros have a scale.
_AMAX_MIN = 1e-4
_MATRICES = re.compile(
    r"model\.layers\.\d+\."
    r"(self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)"
    r"|mlp\.((experts\.\d+|shared_experts)\.)?(gate_proj|up_proj|down_proj))\.weight"
)


def is_block_quantised(name: str) -> bool:
    """Whether an fp8 checkpoint holds this tensor in blocks.

    They are the matrices of attention and of dense, shared and routed MLPs, MTP's layer included.
    Embedding, head, norms, the router and eh_proj stay in bfloat16 (DeepSeek-V3, section 3.3.1, and
    the released files), the router bias in float32.
    """
    return _MATRICES.fullmatch(name) is not None


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of weight_scale_inv for a weight [O, I]."""
    rows, columns = shape
    return -(-rows // BLOCK), -(-columns // BLOCK)


def dequantise(weight: Tensor, scale_inv: Tensor, dtype: torch.dtype) -> Tensor:
    """weight * scale_inv, computed in float32 and then rounded to `dtype`.

    weight: float8_e4m3fn [O, I]; scale_inv: float32 [ceil(O/128), ceil(I/128)]. Holds the result
    and a strip of 128 rows in float32.
    """
    out_OI = torch.empty(weight.shape, dtype=dtype)
    for strip, scales_N in enumerate(scale_inv):
        rows = slice(strip * BLOCK, (strip + 1) * BLOCK)
        scales_I = scales_N.repeat_interleave(BLOCK)[: weight.shape[1]]
        out_OI[rows] = weight[rows].float().mul_(scales_I)
    return out_OI


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight, float32 [O, I], as the pair that `dequantise` takes.

    scale_inv = max(amax, 1e-4) / 448 of each block, or, if that is not exact for all its elements,
    amax / 448 or a float32 next to it that is. Codes are rounded to nearest, ties to even. So a
    block that was in fp8 before gives its codes and its scale back bit for bit from float32

    - if its scale was so computed, from whatever amax (in a block of zeros, from one up to 1e-4);
    - with any other float32 scale, if its amax is 1e-4 or more, its largest code is 448 and one of
      its codes is a power of two: then no other scale near amax / 448 gives that element.

    Holds the result and a few strips of 128 rows in float32. Raises CheckpointError for a value
    that is not finite.
    """
    rows, columns = weight.shape
    codes_OI = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(scale_shape((rows, columns)), dtype=torch.float32)
    for strip, scales_N in enumerate(scales):
        strip_RI = weight[strip * BLOCK : (strip + 1) * BLOCK]
        blocks_RNC = pad(strip_RI, (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK))
        scales_N.copy_(_scales(blocks_RNC))
        codes_RNC = _codes(blocks_RNC, scales_N)
        codes_OI[strip * BLOCK : (strip + 1) * BLOCK] = codes_RNC.flatten(1)[:, :columns]
    return codes_OI, scales


def _scales(blocks_RNC: Tensor) -> Tensor:
    """The scale [N] of each block: amax / 448, or one that gives back what was once quantised."""
    amax_N = blocks_RNC.abs().amax((0, 2))
    if not bool(amax_N.isfinite().all()):
        raise CheckpointError("a weight has a value that is not finite, which fp8 cannot hold")
    scales_N = amax_N.clamp(min=_AMAX_MIN) / _CODE_MAX
    nearest_N = amax_N / _CODE_MAX
    below_N, above_N = (
        torch.nextafter(nearest_N, torch.full_like(nearest_N, end)) for end in (0.0, torch.inf)
    )
    open_N = (~_exact(blocks_RNC, scales_N)).nonzero()[:, 0]
    for other_N in (nearest_N, below_N, above_N):
        found_N = open_N[_exact(blocks_RNC[:, open_N], other_N[open_N])]
        scales_N[found_N] = other_N[found_N]
        open_N = open_N[~torch.isin(open_N, found_N)]
    return scales_N


def _exact(blocks_RNC: Tensor, scales_N: Tensor) -> Tensor:
    """Whether each block [N] is its own codes times the scale, element for element."""
    exact_N = _same(blocks_RNC[:1], scales_N)  # one row tells for most that are not
    likely_N = exact_N.nonzero()[:, 0]
    exact_N[likely_N] = _same(blocks_RNC[:, likely_N], scales_N[likely_N])
    return exact_N


def _same(blocks_RNC: Tensor, scales_N: Tensor) -> Tensor:
    again_RNC = _codes(blocks_RNC, scales_N).float().mul_(scales_N[:, None])
    return (again_RNC == blocks_RNC).all(2).all(0)


def _codes(blocks_RNC: Tensor, scales_N: Tensor) -> Tensor:
    # The cast makes nan of 464 and more; amax / scale is 448 or less, up to rounding.
    return (blocks_RNC / scales_N[:, None]).to(torch.float8_e4m3fn)
