"""SwiGLU and the product after it, as one function: where the output between is to be computed
again, it keeps the input alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.grouped import GroupedProduct
from parallel.ops.kernel import Kernel
from parallel.ops.linear import Product


def swiglu_linear(
    kernel: Kernel, product: Product | GroupedProduct, recompute: bool, *inputs: Tensor
) -> Tensor:
    """The product with kernel(*inputs). recompute: what is between, in the backward."""
    return _SwigluLinear.apply(kernel, product, recompute, *inputs)


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel, product, recompute, *inputs):  # type: ignore[no-untyped-def]
        (act,) = kernel.forward(*inputs)
        ctx.save_for_backward(*inputs, *(() if recompute else (act,)))
        ctx.kernel, ctx.product, ctx.inputs = kernel, product, len(inputs)
        return product.forward(act)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, grad = ctx.saved_tensors, grad.contiguous()
        inputs = saved[: ctx.inputs]
        (act,) = saved[ctx.inputs :] or ctx.kernel.forward(*inputs)
        ctx.product.defer(grad, act)
        act_grad = ctx.product.input_gradient(grad)
        return (None, None, None, *ctx.kernel.backward(act_grad, *inputs))
