"""Rotary position embedding (arXiv 2104.09864) on interleaved pairs, and YaRN (arXiv 2309.00071),
which stretches it to longer contexts, as DeepSeek-V3 uses them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainer.config.schema import AttentionConfig, YarnConfig


def rotations(positions: int, c: AttentionConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, [positions, rope_head_dim / 2] float64, of the angle of each pair at each
    position, times YaRN's scale of the rotary part."""
    dim = c.rope_head_dim
    frequency = c.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if c.yarn.factor > 1:
        frequency = frequency * _slowing(c)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
    scale = _rotary_scale(c.yarn)
    return angle.cos() * scale, angle.sin() * scale


def rotate(x: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate each pair (x[2i], x[2i + 1]) of the last 2R of x [..., S, heads, N + 2R] by its
    position's angle, in the type of the angles; the result has that of x. N may be 0."""
    return _Rotate.apply(x, torch.complex(cos_SR, sin_SR).unsqueeze(1))


class _Rotate(torch.autograd.Function):
    """Pairs as complex numbers: one multiplication each way, in place of a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn_S1R: Tensor) -> Tensor:
        ctx.save_for_backward(turn_S1R)
        return _turned(x, turn_S1R)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (turn_S1R,) = ctx.saved_tensors
        return _turned(grad, turn_S1R.conj()), None


def _turned(x: Tensor, turn_S1R: Tensor) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    end = y[..., -2 * turn_S1R.shape[-1] :]
    pairs = end.to(turn_S1R.real.dtype).unflatten(-1, (-1, 2)).contiguous()
    end.copy_(torch.view_as_real(torch.view_as_complex(pairs) * turn_S1R).flatten(-2))
    return y


def softmax_scale(c: AttentionConfig) -> float:
    """Factor on query times key: one over the root of their width, times YaRN's square."""
    scale = (c.nope_head_dim + c.rope_head_dim) ** -0.5
    return scale * _magnitude(c.yarn.factor, c.yarn.mscale_all_dim) ** 2


def _slowing(c: AttentionConfig) -> Tensor:
    """What YaRN multiplies the frequency of each pair with, [rope_head_dim / 2]: 1 for pairs that
    turn often within the original length, 1 / factor for those that do not, a ramp between."""
    yarn, dim = c.yarn, c.rope_head_dim

    def pair_turning(times: float) -> float:
        length = yarn.original_length / (times * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(c.rope_theta))

    first = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    last = min(math.ceil(pair_turning(yarn.beta_slow)), dim - 1)
    width = (last - first) or 0.001  # a ramp of no width is a step
    slowed = ((torch.arange(dim // 2, dtype=torch.float64) - first) / width).clamp(0, 1)
    return slowed / yarn.factor + (1 - slowed)


def _rotary_scale(yarn: YarnConfig) -> float:
    if yarn.mscale and yarn.mscale_all_dim:
        all_dim = _magnitude(yarn.factor, yarn.mscale_all_dim)
        return _magnitude(yarn.factor, yarn.mscale) / all_dim
    return _magnitude(yarn.factor, 1.0)


def _magnitude(factor: float, mscale: float) -> float:
    """YaRN's sqrt(1 / t) (its eq. 22) with the factor mscale on the logarithm."""
    return 0.1 * mscale * math.log(factor) + 1.0
