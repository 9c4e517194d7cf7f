"""Ops for a model that only runs forward: no gradients, and weights laid out for few tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.ops.ops import Ops
from parallel.ops.products import emulated, linear_product


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

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype is not weight.dtype or emulated(x):
            return linear_product(x, weight)
        return nn.functional.linear(x, weight)

    def embedding(self, tokens: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.embedding(tokens, weight)
