"""RMSNorm (arXiv 1910.07467)."""

from __future__ import annotations

from torch import Tensor, nn

from parallel.ops.ops import Ops


class RMSNorm(nn.Module):
    """x [..., D] / rms(x) x weight [D]."""

    def __init__(self, ops: Ops, dim: int, eps: float) -> None:
        super().__init__()
        self.ops = ops
        self.weight = ops.parameter(dim)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)
