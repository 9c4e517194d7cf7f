"""Grouped products in fp8: rows sorted by expert, each expert with a matrix of its own, and with
tiles of its own where a product sums over rows."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.linear import add_fp8_product
from parallel.ops.fp8.tiles import tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.grouped import grouped_product
from parallel.ops.groups import Groups
from parallel.ops.precision import accurate_type
from parallel.tape.weight_gradients import WeightGradients


def fp8_grouped_linear(
    x_PI: Tensor,
    weight_EOI: Tensor,
    groups: Groups,
    deferred: WeightGradients,
    weights: QuantisedWeights,
) -> Tensor:
    """Rows x weight of their expert, transposed: [P, I], [E, O, I] -> [P, O], in the type of x.

    groups: the rows of each expert, P in all.
    """
    return _Fp8GroupedLinear.apply(x_PI, weight_EOI, groups, deferred, weights)


class _Fp8GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_PI, weight_EOI, groups, deferred, weights):  # type: ignore[no-untyped-def]
        tiled = tiles_along_rows(x_PI)
        ctx.save_for_backward(tiled.codes, tiled.scales)
        ctx.weight, ctx.groups = weight_EOI, groups
        ctx.deferred, ctx.weights = deferred, weights
        values_EIO = weights.values(weight_EOI).transpose(1, 2)
        values_PI = tiled.values(accurate_type(x_PI.dtype))
        return grouped_product(values_PI, values_EIO, groups).to(x_PI.dtype)

    @staticmethod
    def backward(ctx, grad_PO):  # type: ignore[no-untyped-def]
        (codes_PI, scales), weight_EOI = ctx.saved_tensors, ctx.weight
        groups = ctx.groups

        def accumulate() -> None:
            into_EOI = gradient_of(weight_EOI)
            for into_OI, rows in zip(into_EOI, groups.ranges()):
                part = slice(rows.start, rows.stop)
                if len(rows):
                    add_fp8_product(into_OI, grad_PO[part], (codes_PI[part], scales[part]))

        ctx.deferred.defer(accumulate)
        values_EOI = ctx.weights.values(weight_EOI)
        values_PO = tiles_along_rows(grad_PO).values(accurate_type(grad_PO.dtype))
        x_grad_PI = grouped_product(values_PO, values_EOI, groups)
        return x_grad_PI.to(grad_PO.dtype), None, None, None, None
