"""The rows of a weight matrix that tokens name, its gradient deferred."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.tape.weight_gradients import WeightGradients


def embedding(tokens: Tensor, weight: Tensor, deferred: WeightGradients) -> Tensor:
    """Rows of weight [V, D] for integer tokens [...] -> [..., D]; the weight gradient goes to
    `deferred`, and never exists as a dense [V, D] tensor of its own."""
    return _Embedding.apply(tokens, weight, deferred)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, weight, deferred):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.deferred = weight, deferred
        return torch.nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (tokens,), weight = ctx.saved_tensors, ctx.weight
        tokens_T, grad_TD = tokens.flatten(), grad.flatten(0, -2)

        def accumulate() -> None:
            gradient = gradient_of(weight)
            gradient.index_add_(0, tokens_T, grad_TD.to(gradient.dtype))

        ctx.deferred.defer(accumulate)
        return None, None, None
