"""Ops for a model that only runs forward: no gradients, and weights laid out for few tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.ops.ops import Operand, Ops
from parallel.ops.products import LARGE, linear_product

_ROWS = 8  # products of fewer go to torch's own kernel without a question


@dataclass(frozen=True)
class InferenceOps(Ops):
    """Products without autograd, and weights whose outputs lie side by side in memory.

    The product of a matrix with one token is bound by reading the matrix: by columns of this layout
    it is read in one stream, in place of one for each of several rows at a time.
    """

    def parameter(self, *shape: int) -> nn.Parameter:
        """A weight, not set; [..., outputs, inputs] with outputs contiguous."""
        weight = torch.empty(shape, dtype=self.precision.parameters)
        if weight.ndim > 1:
            weight = weight.view(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
        return nn.Parameter(weight, requires_grad=False)

    def linear(self, x: Operand, weight: Tensor) -> Tensor:
        assert isinstance(x, Tensor)  # as `operand` gives it
        if _large(x, weight):
            return linear_product(x, weight)
        return self.small_linear(x, weight)

    def small_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """As `linear`, by a kernel that starts at once for any number of rows."""
        if _plain(x, weight):
            return nn.functional.linear(x, weight)
        return linear_product(x, weight)

    def add_linear(self, into: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """`into` plus the product."""
        if _plain(x, weight) and not _large(x, weight):
            return torch.addmm(into, x, weight.t())
        return into + linear_product(x, weight)

    def accurate_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.linear(self.accurate(x), weight)

    def swiglu_linear(
        self, gate_TI: Tensor, up_TI: Tensor, weight: Tensor, recompute: bool
    ) -> Tensor:
        return self.linear(self.kernels.swiglu(gate_TI, up_TI), weight)

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.embedding(tokens, weight)


def _large(x: Tensor, weight: Tensor) -> bool:
    rows = x.shape[0]
    return rows >= _ROWS and rows * weight.numel() >= LARGE


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own product is as fast as any on every machine."""
    return x.dtype is weight.dtype and x.dtype is not torch.bfloat16
