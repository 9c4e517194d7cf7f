"""The product with a weight matrix, its weight gradient deferred."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.products import add_product, linear_product, product
from parallel.tape.weight_gradients import WeightGradients


def linear(x: Tensor, weight: Tensor, deferred: WeightGradients) -> Tensor:
    """x [..., I] @ weight [O, I] transposed -> [..., O], in the type of x; the weight gradient goes
    to `deferred`."""
    return _Linear.apply(x, weight, deferred)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, deferred):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.weight, ctx.deferred = weight, deferred
        return linear_product(x, weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,), weight = ctx.saved_tensors, ctx.weight
        grad_TO, x_TI = grad.flatten(0, -2), x.flatten(0, -2)
        ctx.deferred.defer(lambda: add_product(gradient_of(weight), grad_TO, x_TI))
        return product(grad, weight) if ctx.needs_input_grad[0] else None, None, None
