"""The product with a weight matrix, its weight gradient deferred."""

from __future__ import annotations

from dataclasses import dataclass

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
    return _Linear.apply(x, Product(weight, deferred), dtype or x.dtype)


@dataclass(frozen=True)
class Product:
    """Three products with a weight [O, I]. deferred: where the third is left."""

    weight: Tensor
    deferred: WeightGradients

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear_product(x, self.weight)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """[..., O] -> [..., I], in the type of grad."""
        return product(grad, self.weight)

    def defer(self, grad: Tensor, x: Tensor) -> None:
        """Leave the weight gradient for later."""
        # Detached: x would keep the graph that made it, and with it what the backward left there.
        grad_TO, x_TI = grad.flatten(0, -2), x.detach().flatten(0, -2)
        self.deferred.defer(lambda: add_product(gradient_of(self.weight), grad_TO, x_TI))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, product, dtype):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.product = product
        return product.forward(x.to(dtype))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        ctx.product.defer(grad, x)
        wanted = ctx.needs_input_grad[0]
        return ctx.product.input_gradient(grad).to(x.dtype) if wanted else None, None, None
