"""SwiGLU (arXiv 2002.05202), forward and backward in as few passes over memory as torch's kernels
allow: autograd would make half as many tensors again, and join the halves of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from parallel.ops.kernel import Kernel

_silu_backward = torch.ops.aten.silu_backward


def _forward(gate: Tensor, up: Tensor) -> tuple[Tensor]:
    return (silu(gate).mul_(up),)


def _backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return _silu_backward(grad * up, gate), silu(gate).mul_(grad)


def _weighted_forward(gate_up_P2I: Tensor, weight_P: Tensor) -> tuple[Tensor]:
    gate_PI, up_PI = gate_up_P2I.chunk(2, dim=-1)
    return (silu(gate_PI).mul_(up_PI).mul_(weight_P.unsqueeze(-1)),)


def _weighted_backward(
    grad_PI: Tensor, gate_up_P2I: Tensor, weight_P: Tensor
) -> tuple[Tensor, Tensor]:
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


def _formula_of_weighted_backward(
    grad_PI: Tensor, gate_up_P2I: Tensor, weight_P: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for a compiler, which writes the halves where they belong without help."""
    gate_PI, up_PI = gate_up_P2I.chunk(2, dim=-1)
    act_PI, weighted_PI = silu(gate_PI), grad_PI * weight_P.unsqueeze(-1)
    gate_grad_PI = _silu_backward((weighted_PI * up_PI).to(gate_PI.dtype), gate_PI)
    grad_P2I = torch.cat([gate_grad_PI, (weighted_PI * act_PI).to(up_PI.dtype)], -1)
    return grad_P2I, (grad_PI * act_PI * up_PI).sum(-1, dtype=weight_P.dtype)


SWIGLU = Kernel(_forward, _backward)
WEIGHTED_SWIGLU = Kernel(_weighted_forward, _weighted_backward)
WEIGHTED_SWIGLU_TO_COMPILE = Kernel(_weighted_forward, _formula_of_weighted_backward)
