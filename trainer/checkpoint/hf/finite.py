"""Whether the values of a stored tensor are numbers at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of float8_e4m3fn, whatever the sign; there is no infinity.
_FP8_NAN = 0x7F


def all_finite(tensor: Tensor) -> bool:
    """True if no value is nan or infinite. One pass over the memory; fp8 is looked at as codes."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.float8_e4m3fn:
        return not bool((tensor.view(torch.uint8) & _FP8_NAN == _FP8_NAN).any())
    least, most = tensor.aminmax()  # nan where one value is
    return math.isfinite(least) and math.isfinite(most)
