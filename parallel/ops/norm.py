"""RMSNorm (arXiv 1910.07467), of which the backward keeps the input and one number per row; on the
CPU torch's own keeps, and passes over, twice as much."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.ops.precision import accurate_type


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x [..., D] / rms(x) x weight, computed in float32 or wider, in the type of x.

    rms(x) is the root of the mean square of a row, plus eps under the root.
    """
    if x.is_cuda:  # one kernel each way
        return torch.nn.functional.rms_norm(x, weight_D.shape, weight_D, eps)
    return _RMSNorm.apply(x, weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x.to(accurate_type(x.dtype))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (wide * inverse).mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, inverse = ctx.saved_tensors
        weight_D = weight_D.to(inverse.dtype)
        normed = x * inverse
        x_grad = grad * normed
        weight_grad = x_grad.flatten(0, -2).sum(0)
        mean = x_grad.matmul(weight_D).mul_(-1 / x.shape[-1]).unsqueeze(-1)
        torch.mul(grad, weight_D, out=x_grad).addcmul_(normed, mean).mul_(inverse)
        return x_grad.to(x.dtype), weight_grad, None
