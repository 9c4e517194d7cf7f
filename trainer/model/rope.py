"""Rotary position embedding (arXiv 2104.09864) on interleaved pairs, as DeepSeek-V3 uses it."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(positions: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, [positions, dim / 2] float64, of the angle of each pair at each position."""
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate each pair (x[2i], x[2i + 1]) of x [..., S, heads, 2R] by its position's angle."""
    cos, sin = cos_SR.unsqueeze(1), sin_SR.unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
