"""What products read of an activation: fp8 codes and scales, made once for all that read it.

The gradient of an activation stays in the activation's own type. Autograd would give it that of the
codes, and so round it: it goes through a carrier instead, a tensor of the same shape and type whose
numbers nobody reads, and which takes no memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import tiles_along_rows


class Rounded(NamedTuple):
    """x [T, C] in tiles along rows. carrier: x's place in the graph, [T, C], of no memory. codes:
    fp8, [T, C]. scales: float32, [T, ceil(C / 128)]."""

    carrier: Tensor
    codes: Tensor
    scales: Tensor


def rounded(x_TC: Tensor) -> Rounded:
    """x as fp8 holds it; the gradient of the carrier is that of x."""
    return Rounded(*_Round.apply(x_TC))


def carrier_of(x: Tensor) -> Tensor:
    """A tensor of the shape and type of x, without memory."""
    return x.new_empty(1).expand(x.shape)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tiled = tiles_along_rows(x_TC)
        ctx.mark_non_differentiable(tiled.codes, tiled.scales)
        return carrier_of(x_TC), tiled.codes, tiled.scales

    @staticmethod
    def backward(ctx: Any, grad_TC: Tensor, *no_gradients: None) -> Tensor:
        return grad_TC
