"""SwiGLU and the product after it, of which only the input is kept, in fp8 (DeepSeek-V3, arXiv
2412.19437, section 3.3.3: its output is computed again in the backward)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.fp8.grouped import defer_grouped, forward_product, input_gradient
from parallel.ops.fp8.tiles import TILE, Tiled, tiles_along_rows
from parallel.ops.fp8.weights import QuantisedWeights
from parallel.ops.groups import Groups
from parallel.ops.kernel import Kernel
from parallel.tape.weight_gradients import WeightGradients


def fp8_swiglu_linear(
    kernel: Kernel,
    gate_up_P2I: Tensor,
    weight_P: Tensor,
    down_EOI: Tensor,
    groups: Groups,
    deferred: WeightGradients,
    weights: QuantisedWeights,
    keep_output: bool,
) -> Tensor:
    """Rows of kernel(gate_up, weight) x matrix of their expert, transposed -> [P, O].

    keep_output: of the SwiGLU, in fp8; where not, it is computed again from what is kept of its
    input, which is the input rounded to fp8.
    """
    return _SwigluLinear.apply(
        gate_up_P2I, weight_P, kernel, down_EOI, groups, deferred, weights, keep_output
    )


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, gate_up_P2I, weight_P, kernel, down_EOI, groups, deferred, weights, keep_output
    ):
        kept = tiles_along_rows(gate_up_P2I)
        act = tiles_along_rows(*kernel.forward(gate_up_P2I, weight_P))
        kept_act = (act.codes, act.scales) if keep_output else ()
        ctx.save_for_backward(kept.codes, kept.scales, weight_P, *kept_act)
        ctx.kernel, ctx.down, ctx.groups = kernel, down_EOI, groups
        ctx.deferred, ctx.weights, ctx.dtype = deferred, weights, gate_up_P2I.dtype
        return forward_product(act, weights.values(down_EOI), groups, ctx.dtype)

    @staticmethod
    def backward(ctx: Any, grad_PO: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales, weight_P, *kept_act = ctx.saved_tensors
        gate_up_P2I = Tiled(codes, scales, (1, TILE)).values(ctx.dtype)
        if kept_act:
            act = Tiled(kept_act[0], kept_act[1], (1, TILE))
        else:
            act = tiles_along_rows(*ctx.kernel.forward(gate_up_P2I, weight_P))
        defer_grouped(ctx.deferred, ctx.down, grad_PO, act, ctx.groups)
        grad_PI = input_gradient(grad_PO, ctx.weights.values(ctx.down), ctx.groups)
        return (*ctx.kernel.backward(grad_PI, gate_up_P2I, weight_P), *(None,) * 6)
