"""RMSNorm (arXiv 1910.07467), of which the backward keeps the input and one number per row; on the
CPU torch's own keeps, and passes over, twice as much."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.kernel import Kernel
from parallel.ops.precision import accurate_type


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, kernel: Kernel) -> Tensor:
    """x [..., D] / rms(x) x weight, computed in float32 or wider, in the type of x.

    rms(x) is the root of the mean square of a row, plus eps under the root. kernel: RMS_NORM, which
    may be compiled; CUDA has one kernel each way of its own.
    """
    if x.is_cuda:
        return torch.nn.functional.rms_norm(x, weight_D.shape, weight_D, eps)
    return kernel(x, weight_D, eps)


def _forward(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(accurate_type(x.dtype))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse).mul_(weight_D).to(x.dtype), inverse


def _backward(grad: Tensor, x: Tensor, weight_D: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    weight_D = weight_D.to(inverse.dtype)
    normed = x * inverse
    x_grad = grad * normed
    weight_grad = x_grad.flatten(0, -2).sum(0)
    mean = x_grad.matmul(weight_D).mul_(-1 / x.shape[-1]).unsqueeze(-1)
    torch.mul(grad, weight_D, out=x_grad).addcmul_(normed, mean).mul_(inverse)
    return x_grad.to(x.dtype), weight_grad


RMS_NORM = Kernel(_forward, _backward)
