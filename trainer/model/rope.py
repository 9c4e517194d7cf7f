"""Angles of rotary position embedding (arXiv 2104.09864), and YaRN (arXiv 2309.00071), which
stretches it to longer contexts, as DeepSeek-V3 uses them."""

from __future__ import annotations

import math

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
