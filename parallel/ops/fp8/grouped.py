"""Grouped products in fp8: rows sorted by expert, each expert with a matrix of its own, and with
tiles of its own where a product sums over rows."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.linear import add_fp8_product
from parallel.ops.fp8.tiles import tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.grouped import grouped_product, groups
from parallel.ops.precision import accurate_type
from parallel.tape.weight_gradients import WeightGradients


def fp8_grouped_linear(
    x_PI: Tensor,
    weight_EOI: Tensor,
    ends_E: Tensor,
    deferred: WeightGradients,
    weights: QuantisedWeights,
) -> Tensor:
    """Rows x weight of their expert, transposed: [P, I], [E, O, I] -> [P, O], in the type of x.

    ends_E: int32, for each expert the row after its last; the last one is P.
    """
    return _Fp8GroupedLinear.apply(x_PI, weight_EOI, ends_E, deferred, weights)


class _Fp8GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_PI, weight_EOI, ends_E, deferred, weights):  # type: ignore[no-untyped-def]
        tiled = tiles_along_rows(x_PI)
        ctx.save_for_backward(tiled.codes, tiled.scales, ends_E)
        ctx.weight, ctx.deferred, ctx.weights = weight_EOI, deferred, weights
        values_EIO = weights.values(weight_EOI).transpose(1, 2)
        values_PI = tiled.values(accurate_type(x_PI.dtype))
        return grouped_product(values_PI, values_EIO, ends_E).to(x_PI.dtype)

    @staticmethod
    def backward(ctx, grad_PO):  # type: ignore[no-untyped-def]
        (codes_PI, scales, ends_E), weight_EOI = ctx.saved_tensors, ctx.weight

        def accumulate() -> None:
            into_EOI = gradient_of(weight_EOI)
            for into_OI, rows in zip(into_EOI, groups(ends_E)):
                part = slice(rows.start, rows.stop)
                if len(rows):
                    add_fp8_product(into_OI, grad_PO[part], (codes_PI[part], scales[part]))

        ctx.deferred.defer(accumulate)
        values_EOI = ctx.weights.values(weight_EOI)
        values_PO = tiles_along_rows(grad_PO).values(accurate_type(grad_PO.dtype))
        x_grad_PI = grouped_product(values_PO, values_EOI, ends_E)
        return x_grad_PI.to(grad_PO.dtype), None, None, None, None
