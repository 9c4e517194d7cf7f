"""E5M6: a sign, five bits of exponent and six of mantissa, with a power-of-two scale per 1 x 128.

DeepSeek-V3 keeps the input of attention's output projection so (arXiv 2412.19437, section 3.3.3):
it is read again by the backward of attention, which is sensitive to precision. Here its numbers are
rounded as that type rounds, and kept in bfloat16, which has seven bits: no memory is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import SMALLEST_AMAX, TILE

_MANTISSA = 6
_LARGEST = (2 - 2**-_MANTISSA) * 2.0**15
_LEAST_EXPONENT = -14  # of a normal number; smaller ones have fewer bits


def round_e5m6(x_RC: Tensor) -> Tensor:
    """Each number as E5M6 holds it, times its scale; in the type of x, bfloat16 or wider."""
    rows_RNA = torch.nn.functional.pad(x_RC.float(), (0, -x_RC.shape[1] % TILE)).unflatten(
        1, (-1, TILE)
    )
    amax_RN1 = rows_RNA.abs().amax(2, keepdim=True).clamp_(min=SMALLEST_AMAX)
    exponent_RN1 = torch.frexp(amax_RN1 / _LARGEST)[1]
    codes_RNA = _rounded(torch.ldexp(rows_RNA, -exponent_RN1))
    return torch.ldexp(codes_RNA, exponent_RN1).flatten(1)[:, : x_RC.shape[1]].to(x_RC.dtype)


def _rounded(x: Tensor) -> Tensor:
    """To six bits after the leading one, ties to even."""
    exponent = torch.frexp(x)[1] - 1
    step = torch.ldexp(torch.ones_like(x), exponent.clamp_(min=_LEAST_EXPONENT) - _MANTISSA)
    return torch.round(x / step) * step
