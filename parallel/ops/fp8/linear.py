"""The product with a weight in fp8, forward, input gradient and weight gradient (DeepSeek-V3, arXiv
2412.19437, figure 6 and section 3.3.2).

Each operand is rounded to fp8 in tiles. On a CPU the values that its codes stand for are multiplied
in float32: what tensor cores give when partial sums of 128 products are promoted to float32, but
for the order of additions. Of the input only codes and scales are kept for the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.e5m6 import round_e5m6
from parallel.ops.fp8.tiles import TILE, Tiled, tiles_along_columns, tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.precision import accurate_type
from parallel.ops.products import add_product, linear_product, product
from parallel.tape.weight_gradients import WeightGradients


def fp8_linear(
    x: Tensor, weight: Tensor, deferred: WeightGradients, weights: QuantisedWeights, keep_e5m6: bool
) -> Tensor:
    """x [..., I] @ weight [O, I] transposed -> [..., O], in the type of x.

    keep_e5m6: x is kept in E5M6 for the weight gradient in place of fp8.
    """
    return _Fp8Linear.apply(x, weight, deferred, weights, keep_e5m6)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x, weight, deferred, weights, keep_e5m6
    ):
        x_TI = x.flatten(0, -2)
        tiled = tiles_along_rows(x_TI, power_of_two=keep_e5m6)
        if keep_e5m6:
            ctx.save_for_backward(round_e5m6(x_TI))
        else:
            ctx.save_for_backward(tiled.codes, tiled.scales)
        ctx.weight, ctx.deferred, ctx.weights = weight, deferred, weights
        y_TO = linear_product(tiled.values(accurate_type(x.dtype)), weights.values(weight))
        return y_TO.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        weight, weights, kept = ctx.weight, ctx.weights, ctx.saved_tensors
        grad_TO = grad.flatten(0, -2)
        ctx.deferred.defer(lambda: add_fp8_product(gradient_of(weight), grad_TO, kept))
        if not ctx.needs_input_grad[0]:
            return (None,) * 5
        grad_values_TO = tiles_along_rows(grad_TO).values(accurate_type(grad.dtype))
        x_grad = product(grad_values_TO, weights.values(weight))
        return x_grad.to(grad.dtype).view(*grad.shape[:-1], -1), None, None, None, None


def add_fp8_product(into_OI: Tensor, grad_TO: Tensor, kept: tuple[Tensor, ...]) -> None:
    """into += grad transposed @ x, both in tiles along the rows that are summed over. kept: x as
    its codes and scales in tiles along rows, or x itself."""
    x_TI = kept[0] if len(kept) == 1 else Tiled(kept[0], kept[1], (1, TILE)).values()
    grad_TO, x_TI = (tiles_along_columns(each).values(into_OI.dtype) for each in (grad_TO, x_TI))
    add_product(into_OI, grad_TO, x_TI)
