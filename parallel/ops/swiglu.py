"""SwiGLU (arXiv 2002.05202), forward and backward in as few passes over memory as torch's kernels
allow: autograd would make half as many tensors again, and join the halves of the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

_silu_backward = torch.ops.aten.silu_backward


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) x up, of one shape."""
    return _SwiGLU.apply(gate, up)


def weighted_swiglu(gate_up_P2I: Tensor, weight_P: Tensor) -> Tensor:
    """silu(gate) x up x weight of the row, [P, I], in the type of gate_up, whose halves are gate
    and up; the weight may be of a wider type, in which its gradient is summed."""
    return _WeightedSwiGLU.apply(gate_up_P2I, weight_P)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _silu_backward(grad * up, gate), silu(gate).mul_(grad)


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_P2I: Tensor, weight_P: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_P2I, weight_P)
        gate_PI, up_PI = gate_up_P2I.chunk(2, dim=-1)
        return silu(gate_PI).mul_(up_PI).mul_(weight_P.unsqueeze(-1))

    @staticmethod
    def backward(ctx: Any, grad_PI: Tensor) -> tuple[Tensor, Tensor]:
        gate_up_P2I, weight_P = ctx.saved_tensors
        gate_PI, up_PI = gate_up_P2I.chunk(2, dim=-1)
        grad_P2I = torch.empty_like(gate_up_P2I)
        grad_gate_PI, grad_up_PI = grad_P2I.chunk(2, dim=-1)
        weight_P1 = weight_P.unsqueeze(-1)
        scratch_PI = silu(gate_PI).mul_(grad_PI)  # one buffer, that stays in the cache
        torch.mul(scratch_PI, weight_P1, out=grad_up_PI)
        weight_grad_P = scratch_PI.mul_(up_PI).sum(-1, dtype=weight_P.dtype)
        torch.mul(grad_PI, weight_P1, out=scratch_PI).mul_(up_PI)
        _silu_backward(scratch_PI, gate_PI, grad_input=grad_gate_PI)
        return grad_P2I, weight_grad_P
