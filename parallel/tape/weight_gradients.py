"""Weight gradients that wait: the split of a backward into I and W.

A layer whose backward returns the input gradient and queues the weight gradient costs nothing
extra, and lets the schedule decide when the weight gradient runs: behind a collective, or in an
idle slot of the pipeline. Queued gradients are added into `weight.grad`, which must exist: it is a
view of the flat buffer that is reduced over the copies (parallel/reduce/copies.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class WeightGradients:
    """One micro-batch's queue of weight gradients on one stage."""

    def __init__(self) -> None:
        self._queue: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def defer(self, accumulate: Callable[[], None]) -> None:
        """Queue a computation that adds one weight's gradient into its `.grad`."""
        self._queue.append(accumulate)

    def drain(self) -> None:
        """Run and forget all that is queued, without building a graph."""
        queue, self._queue = self._queue, []
        with torch.no_grad():
            while queue:
                queue.pop(0)()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, queue):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.queue = queue
        return torch.nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        grad_TO, x_TI = grad.flatten(0, -2), x.flatten(0, -2)
        ctx.queue.defer(lambda: weight.grad.addmm_(grad_TO.t(), x_TI))
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, weight, queue):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(tokens, weight)
        ctx.queue = queue
        return torch.nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tokens, weight = ctx.saved_tensors
        tokens_T, grad_TD = tokens.flatten(), grad.flatten(0, -2)
        ctx.queue.defer(lambda: weight.grad.index_add_(0, tokens_T, grad_TD))
        return None, None, None


def linear(x: Tensor, weight: Tensor, queue: WeightGradients) -> Tensor:
    """x [..., I] @ weight [O, I] transposed -> [..., O]; the weight gradient goes to `queue`."""
    return _Linear.apply(x, weight, queue)


def embedding(tokens: Tensor, weight: Tensor, queue: WeightGradients) -> Tensor:
    """Rows of weight [V, D] for integer tokens [...] -> [..., D]; the weight gradient goes to
    `queue`, and never exists as a dense [V, D] tensor of its own."""
    return _Embedding.apply(tokens, weight, queue)
