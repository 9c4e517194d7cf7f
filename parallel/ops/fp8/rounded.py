"""What products read of an activation: fp8 codes and scales, made once for all that read it.

The gradient of an activation stays in the activation's own type. Autograd would give it that of the
codes, and so round it: it goes through a carrier instead, a tensor of the same shape and type whose
numbers nobody reads, and which takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import Tiled, tiles_along_rows
from parallel.ops.sum_rows import AddRows

Quantise: TypeAlias = Callable[[Tensor, bool], Tiled]
"""A matrix in tiles along rows, with scales that are powers of two if so."""


class Rounded(NamedTuple):
    """x [T, C] in tiles along rows. carrier: x's place in the graph, [T, C], of no memory. codes:
    fp8, [T, C]. scales: float32, [T, ceil(C / 128)]."""

    carrier: Tensor
    codes: Tensor
    scales: Tensor


def rounded(
    x_TC: Tensor, power_of_two: bool = False, quantise: Quantise = tiles_along_rows
) -> Rounded:
    """x as fp8 holds it; the gradient of the carrier is that of x. power_of_two: of scales."""
    return Rounded(*_Round.apply(x_TC, power_of_two, quantise))


def rows_of(x: Rounded, row_P: Tensor, add: AddRows) -> Rounded:
    """The rows with these numbers (int64), codes and scales as they are."""
    return Rounded(*_Rows.apply(*x, row_P, add))


def read(x: Rounded) -> Tensor:
    """The numbers that codes and scales stand for, in the type of x."""
    return _Read.apply(*x)


def carrier_of(x: Tensor) -> Tensor:
    """A tensor of the shape and type of x, without memory."""
    return x.new_empty(1).expand(x.shape)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, x_TC, power_of_two, quantise
    ) -> tuple[Tensor, Tensor, Tensor]:
        tiled = quantise(x_TC, power_of_two)
        ctx.mark_non_differentiable(tiled.codes, tiled.scales)
        return carrier_of(x_TC), tiled.codes, tiled.scales

    @staticmethod
    def backward(ctx: Any, grad_TC: Tensor, *no_gradients: None) -> tuple[Tensor | None, ...]:
        return grad_TC, None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, carrier, codes, scales, row_P, add
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(row_P)
        ctx.rows, ctx.add = len(codes), add
        taken = codes.index_select(0, row_P), scales.index_select(0, row_P)
        ctx.mark_non_differentiable(*taken)
        return carrier.new_empty(1).expand(taken[0].shape), *taken

    @staticmethod
    def backward(ctx: Any, grad_PC: Tensor, *no_gradients: None) -> tuple[Tensor | None, ...]:
        (row_P,) = ctx.saved_tensors
        grad_TC = ctx.add(grad_PC.contiguous(), row_P, ctx.rows)
        return grad_TC, None, None, None, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        return Tiled.along_rows(codes, scales).values(carrier.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
