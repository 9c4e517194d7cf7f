"""A function whose derivative is written by hand, and both compiled if asked.

autograd and torch.compile see nothing of each other: what is compiled reads tensors that have no
gradient, so there is one graph of each formula, whatever is trained, evaluated or recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """Call it with tensors, and constants after them.

    forward: of the same, gives the result and what else the backward reads, as a tuple. backward:
    of the gradient of the result, the tensors, and what the forward gave to it; gives the gradient
    of each tensor.
    """

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]

    def __call__(self, *inputs: Any) -> Tensor:
        return _Call.apply(self, *inputs)

    def compiled(self) -> Kernel:
        """The same with both formulas fused by torch.compile, once for all shapes, at the first
        call: experts have other numbers of rows in every micro-batch."""
        forward = torch.compile(self.forward, dynamic=True)
        return Kernel(forward, torch.compile(self.backward, dynamic=True))


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *inputs: Any) -> Tensor:
        tensors = [value.detach() for value in inputs if isinstance(value, Tensor)]
        constants = inputs[len(tensors) :]
        result, *more = kernel.forward(*tensors, *constants)
        ctx.save_for_backward(*tensors, *more)
        ctx.kernel, ctx.no_gradients = kernel, (None,) * len(constants)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.kernel.backward(grad, *ctx.saved_tensors), *ctx.no_gradients)
