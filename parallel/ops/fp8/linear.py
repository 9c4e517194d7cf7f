"""The product with a weight in fp8, forward, input gradient and weight gradient (DeepSeek-V3, arXiv
2412.19437, figure 6 and section 3.3.2).

Each operand is rounded to fp8 in tiles. On a CPU the values that its codes stand for are multiplied
in float32: what tensor cores give when partial sums of 128 products are promoted to float32, but
for the order of additions. What waits for the weight gradient is codes and scales, of the input and
of the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.fp8.e5m6 import round_e5m6
from parallel.ops.fp8.rounded import Rounded
from parallel.ops.fp8.tiles import TILE, Tiled, tiles_along_columns, tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.precision import accurate_type
from parallel.ops.products import add_product, linear_product, product
from parallel.tape.weight_gradients import WeightGradients


def fp8_linear(
    x: Rounded, weight: Tensor, deferred: WeightGradients, weights: QuantisedWeights
) -> Tensor:
    """x [T, I] @ weight [O, I] transposed -> [T, O], in the type of x."""
    return _Fp8Linear.apply(*x, weight, deferred, weights)


def fp8_attention_output(
    x_TI: Tensor, weight: Tensor, deferred: WeightGradients, weights: QuantisedWeights
) -> Tensor:
    """The same of attention's result, which is rounded to E5M6 where it is: the weight gradient and
    attention's own backward read it so (section 3.3.3)."""
    return _Fp8AttentionOutput.apply(x_TI, weight, deferred, weights)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier, codes, scales, weight, deferred, weights):  # type: ignore[no-untyped-def]
        x = Rounded(carrier, codes, scales)
        ctx.save_for_backward(codes, scales)
        ctx.weight, ctx.deferred, ctx.weights = weight, deferred, weights
        return _forward(x.tiled, weight, weights, carrier.dtype)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        defer_fp8_product(ctx.deferred, ctx.weight, grad_TO, Tiled(codes, scales, (1, TILE)))
        wanted = ctx.needs_input_grad[0]
        return (_input_gradient(ctx, grad_TO) if wanted else None, *(None,) * 5)


class _Fp8AttentionOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI, weight, deferred, weights):  # type: ignore[no-untyped-def]
        tiled = tiles_along_rows(x_TI, power_of_two=True)
        # Through `data`: attention has saved this memory, and may read other numbers in it.
        x_TI.data.copy_(round_e5m6(x_TI))
        ctx.save_for_backward(x_TI)
        ctx.weight, ctx.deferred, ctx.weights = weight, deferred, weights
        return _forward(tiled, weight, weights, x_TI.dtype)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        (x_TI,) = ctx.saved_tensors
        defer_fp8_product(ctx.deferred, ctx.weight, grad_TO, x_TI)
        return _input_gradient(ctx, grad_TO), None, None, None


def _forward(x: Tiled, weight: Tensor, weights: QuantisedWeights, dtype: torch.dtype) -> Tensor:
    return linear_product(x.values(accurate_type(dtype)), weights.values(weight)).to(dtype)


def _input_gradient(ctx: Any, grad_TO: Tensor) -> Tensor:
    values_TO = tiles_along_rows(grad_TO).values(accurate_type(grad_TO.dtype))
    return product(values_TO, ctx.weights.values(ctx.weight)).to(grad_TO.dtype)


def defer_fp8_product(
    deferred: WeightGradients, weight: Tensor, grad_TO: Tensor, x_TI: Tiled | Tensor
) -> None:
    """Leave the weight gradient, grad transposed @ x, for later. x: in tiles along rows, or itself.

    The gradient is rounded at once, and half the memory waits.
    """
    grad = tiles_along_columns(grad_TO)
    deferred.defer(lambda: add_fp8_product(gradient_of(weight), grad, x_TI))


def add_fp8_product(into_OI: Tensor, grad: Tiled, x_TI: Tiled | Tensor) -> None:
    """into += grad transposed @ x, both in tiles along the rows that are summed over, of x made
    here."""
    values_TI = x_TI if isinstance(x_TI, Tensor) else x_TI.values()
    x = tiles_along_columns(values_TI)
    add_product(into_OI, grad.values(into_OI.dtype), x.values(into_OI.dtype))
