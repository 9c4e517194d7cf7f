"""Functions whose product with a weight is in fp8: of what it reads, codes and scales are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.fp8.e5m6 import round_e5m6
from parallel.ops.fp8.product import AnyProduct
from parallel.ops.fp8.rounded import Rounded
from parallel.ops.fp8.tiles import Tiled


def fp8_linear(x: Rounded, product: AnyProduct) -> Tensor:
    """The product with x [T, I], in the type of x."""
    return _Fp8Linear.apply(*x, product)


def fp8_attention_output(x_TI: Tensor, product: AnyProduct) -> Tensor:
    """The same of attention's result, which is rounded to E5M6 where it is: the weight gradient and
    attention's own backward read it so (section 3.3.3)."""
    return _Fp8AttentionOutput.apply(x_TI, product)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier, codes, scales, product):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(codes, scales)
        ctx.product = product
        return product.forward(Tiled.along_rows(codes, scales), carrier.dtype)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        ctx.product.defer(grad_TO, Tiled.along_rows(*ctx.saved_tensors))
        wanted = ctx.needs_input_grad[0]
        return ctx.product.input_gradient(grad_TO) if wanted else None, None, None, None


class _Fp8AttentionOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI, product):  # type: ignore[no-untyped-def]
        tiled = product.quantise(x_TI, power_of_two=True)
        # Through `data`: attention has saved this memory, and may read other numbers in it.
        x_TI.data.copy_(round_e5m6(x_TI))
        ctx.save_for_backward(x_TI)
        ctx.product = product
        return product.forward(tiled, x_TI.dtype)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        ctx.product.defer(grad_TO, *ctx.saved_tensors)
        return ctx.product.input_gradient(grad_TO), None
