"""The product with a weight matrix, its weight gradient deferred."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.products import add_product, linear_product, product
from parallel.tape.weight_gradients import WeightGradients


def linear(
    x: Tensor, weight: Tensor, deferred: WeightGradients, dtype: torch.dtype | None = None
) -> Tensor:
    """x [..., I] @ weight [O, I] transposed -> [..., O]; the weight gradient goes to `deferred`.

    dtype: of the product, that of x where not given. What is kept of x has the type of x.
    """
    return _Linear.apply(x, weight, deferred, dtype or x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, deferred, dtype):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.weight, ctx.deferred = weight, deferred
        return linear_product(x.to(dtype), weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,), weight = ctx.saved_tensors, ctx.weight
        grad_TO, x_TI = grad.flatten(0, -2), x.flatten(0, -2)
        ctx.deferred.defer(lambda: add_product(gradient_of(weight), grad_TO, x_TI))
        x_grad = product(grad, weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        return x_grad, None, None, None
