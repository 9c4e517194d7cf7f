"""Grouped products in fp8: rows sorted by expert, each expert with a matrix of its own, and with
tiles of its own where a product sums over rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.linear import add_fp8_product
from parallel.ops.fp8.rounded import Rounded
from parallel.ops.fp8.tiles import TILE, Tiled, tiles_along_columns, tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.grouped import grouped_product
from parallel.ops.groups import Groups
from parallel.ops.precision import accurate_type
from parallel.tape.weight_gradients import WeightGradients


def fp8_grouped_linear(
    x: Rounded,
    weight_EOI: Tensor,
    groups: Groups,
    deferred: WeightGradients,
    weights: QuantisedWeights,
) -> Tensor:
    """Rows x weight of their expert, transposed: [P, I], [E, O, I] -> [P, O], in the type of x.

    groups: the rows of each expert, P in all.
    """
    return _Fp8GroupedLinear.apply(*x, weight_EOI, groups, deferred, weights)


class _Fp8GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier, codes, scales, weight_EOI, groups, deferred, weights):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(codes, scales)
        ctx.weight, ctx.groups = weight_EOI, groups
        ctx.deferred, ctx.weights = deferred, weights
        x = Tiled(codes, scales, (1, TILE))
        return forward_product(x, weights.values(weight_EOI), groups, carrier.dtype)

    @staticmethod
    def backward(ctx: Any, grad_PO: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        weight_EOI, groups = ctx.weight, ctx.groups
        defer_grouped(ctx.deferred, weight_EOI, grad_PO, Tiled(codes, scales, (1, TILE)), groups)
        x_grad_PI = input_gradient(grad_PO, ctx.weights.values(weight_EOI), groups)
        return x_grad_PI, *(None,) * 6


def forward_product(x: Tiled, values_EOI: Tensor, groups: Groups, dtype: torch.dtype) -> Tensor:
    """[P, O], of `dtype`. values: of the weights in fp8."""
    values_PI = x.values(accurate_type(dtype))
    return grouped_product(values_PI, values_EOI.transpose(1, 2), groups).to(dtype)


def input_gradient(grad_PO: Tensor, values_EOI: Tensor, groups: Groups) -> Tensor:
    """[P, I], in the type of the gradient."""
    values_PO = tiles_along_rows(grad_PO).values(accurate_type(grad_PO.dtype))
    return grouped_product(values_PO, values_EOI, groups).to(grad_PO.dtype)


def defer_grouped(
    deferred: WeightGradients, weight_EOI: Tensor, grad_PO: Tensor, x: Tiled, groups: Groups
) -> None:
    """Leave each expert's weight gradient for later. The gradient is rounded at once, and half the
    memory waits."""
    parts = [slice(rows.start, rows.stop) for rows in groups.ranges()]
    grads = [
        tiles_along_columns(grad_PO[part]) if part.stop > part.start else None for part in parts
    ]

    def accumulate() -> None:
        for into_OI, part, grad in zip(gradient_of(weight_EOI), parts, grads):
            if grad is not None:
                add_fp8_product(into_OI, grad, Tiled(x.codes[part], x.scales[part], x.tile))

    deferred.defer(accumulate)
