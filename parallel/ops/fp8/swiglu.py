"""SwiGLU and the product after it, of which only the input is kept, in fp8 (DeepSeek-V3, arXiv
2412.19437, section 3.3.3: its output is computed again in the backward)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.ops.fp8.product import AnyProduct
from parallel.ops.fp8.rounded import Quantise
from parallel.ops.fp8.tiles import Tiled
from parallel.ops.kernel import Kernel


@dataclass(frozen=True)
class RoundingKernel:
    """forward: of the inputs, gives the result in tiles along rows. backward: that of a Kernel.
    read: what either takes of an input that was kept in fp8, for a run in a given type."""

    forward: Callable[..., Tiled]
    backward: Callable[..., tuple[Tensor, ...]]
    read: Callable[[Tiled, torch.dtype], Tensor | Tiled] = Tiled.values

    @classmethod
    def of(cls, kernel: Kernel, quantise: Quantise) -> RoundingKernel:
        """One after the other."""
        return cls(lambda *inputs: quantise(kernel.forward(*inputs)[0], False), kernel.backward)


def fp8_swiglu_linear(
    kernel: RoundingKernel, product: AnyProduct, recompute: bool, *inputs: Tensor
) -> Tensor:
    """The product with kernel(*inputs). Matrices among the inputs are kept in fp8.

    recompute: the output of the kernel, from what is kept of its inputs, which are rounded then;
    where not, it is kept too, in fp8.
    """
    return _Fp8SwigluLinear.apply(kernel, product, recompute, *inputs)


class _Fp8SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel, product, recompute, *inputs):  # type: ignore[no-untyped-def]
        dtype = inputs[0].dtype
        act = kernel.forward(*inputs)
        kept = [_kept(each, product) for each in inputs]
        kept_act = () if recompute else (act.codes, act.scales)
        ctx.save_for_backward(*kept_act, *(tensor for tensors in kept for tensor in tensors))
        ctx.sizes, ctx.keeps_act = [len(tensors) for tensors in kept], not recompute
        ctx.kernel, ctx.product, ctx.dtype = kernel, product, dtype
        return product.forward(act, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        act = Tiled.along_rows(next(saved), next(saved)) if ctx.keeps_act else None
        kept = [[next(saved) for _ in range(size)] for size in ctx.sizes]
        inputs = [_read(each, ctx.kernel, ctx.dtype) for each in kept]
        if act is None:
            act = ctx.kernel.forward(*inputs)
        ctx.product.defer(grad, act)
        act_grad = ctx.product.input_gradient(grad)
        return (None, None, None, *ctx.kernel.backward(act_grad, *inputs))


def _kept(tensor: Tensor, product: AnyProduct) -> tuple[Tensor, ...]:
    if tensor.ndim < 2:
        return (tensor,)
    tiled = product.quantise(tensor)
    return tiled.codes, tiled.scales


def _read(kept: list[Tensor], kernel: RoundingKernel, dtype: torch.dtype) -> Tensor | Tiled:
    return kept[0] if len(kept) == 1 else kernel.read(Tiled.along_rows(*kept), dtype)
