"""SwiGLU whose inputs are kept in fp8 (DeepSeek-V3, arXiv 2412.19437, section 3.3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.fp8.tiles import Tiled, tiles_along_rows
from parallel.ops.kernel import Kernel


def keeping_fp8(kernel: Kernel, tensor: Tensor, *others: Tensor) -> Tensor:
    """kernel(tensor, *others), whose backward reads `tensor` [R, C] as fp8 holds it; others are
    kept as they are."""
    return _Keeping.apply(kernel, tensor, *others)


class _Keeping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, tensor: Tensor, *others: Tensor) -> Tensor:
        tiled = tiles_along_rows(tensor)
        (result,) = kernel.forward(tensor, *others)
        ctx.save_for_backward(tiled.codes, tiled.scales, *others)
        ctx.kernel, ctx.tile, ctx.dtype = kernel, tiled.tile, tensor.dtype
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales, *others = ctx.saved_tensors
        tensor = Tiled(codes, scales, ctx.tile).values(ctx.dtype)
        return (None, *ctx.kernel.backward(grad, tensor, *others))
