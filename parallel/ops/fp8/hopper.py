"""How Hopper's tensor cores add: a study of why partial sums are promoted to float32.

The tensor cores of an H800 align 32 products to the largest of them, keep 13 bits after its leading
one, cut off the rest, and add their sum to a register of 22 bits, of which 13 are the fraction
(arXiv 2505.09343, section 3.1.1). DeepSeek-V3 moves that register to float32 every 128 numbers
(arXiv 2412.19437, section 3.3.2). Nothing trains with this: it is too slow, and exists to be
compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import TILE, Tiled

AT_ONCE = 32
BITS = 13


def hopper_product(a: Tiled, b: Tiled, promote_every: int | None = TILE) -> Tensor:
    """a [T, K] in tiles along rows @ b [O, K] transposed, in tiles along rows or blocks -> float32
    [T, O].

    promote_every: numbers after which the register is added to float32, where scales apply: a
    multiple of 128, or None for never, where all scales must be 1.
    """
    (tokens, width), outputs = a.codes.shape, len(b.codes)
    a_scales, b_scales = a.scales, _by_row(b, outputs)
    out_TO = torch.zeros(tokens, outputs)
    step = promote_every or width
    for start in range(0, width, step):
        register_TO = torch.zeros(tokens, outputs)
        for first in range(start, min(start + step, width), AT_ONCE):
            part = slice(first, min(first + AT_ONCE, start + step, width))
            products_TOA = a.codes[:, part].float()[:, None] * b.codes[:, part].float()[None]
            register_TO = _added(register_TO, products_TOA)
        tile = start // TILE
        out_TO += register_TO * a_scales[:, tile, None] * b_scales[None, :, tile]
    return out_TO


def _by_row(b: Tiled, rows: int) -> Tensor:
    """Scales [O, tiles of K]."""
    return b.scales.repeat_interleave(b.tile[0], 0)[:rows]


def _added(register_TO: Tensor, products_TOA: Tensor) -> Tensor:
    """The register after 32 more products."""
    largest_TO1 = products_TOA.abs().amax(-1, keepdim=True)
    sum_TO = _cut(products_TOA, largest_TO1).sum(-1)
    return _cut(register_TO + sum_TO, register_TO + sum_TO)


def _cut(x: Tensor, aligned_to: Tensor) -> Tensor:
    """x without what lies more than 13 bits below the leading one of `aligned_to`."""
    exponent = torch.frexp(aligned_to)[1] - 1
    step = torch.ldexp(torch.ones_like(aligned_to), exponent - BITS)
    return torch.trunc(x / step) * step
