"""Cross-entropy of the output head, in chunks of tokens, so that the logits of all tokens never
exist at once.

At a vocabulary of 129,280 the logits of 4,096 tokens take 2 GiB in float32, and their gradient as
much again. Here the forward turns each chunk's logits into its loss and its input gradient and
forgets them; the weight gradient computes them again when its turn comes. All that fits into one
chunk is kept instead.

Shapes: T tokens, D width, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.accumulate import gradient_of
from parallel.ops.precision import accurate_type
from parallel.ops.products import add_product, linear_product, product
from parallel.tape.weight_gradients import WeightGradients

IGNORED = -1
"""A target that is none."""


@dataclass(frozen=True)
class Softmax:
    """What turns logits into losses and gradients. chunk: the most logits that exist at once.

    prepare: logits [C, V] as the product gives them -> as the others take them. loss: of these and
    of targets [C] -> the loss of each token, 0 where the target is IGNORED, and the log of the sum
    of exponentials, float32 or wider, [C] each. gradient: of the summed loss by the logits, from
    (logits, that log, targets); in place of the logits.
    """

    prepare: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    chunk: int


def cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, target_T: Tensor, deferred: WeightGradients, softmax: Softmax
) -> Tensor:
    """Cross-entropy of softmax(x @ weight transposed), summed over the tokens whose target is not
    IGNORED, in nats; float32 or wider. The weight gradient goes to `deferred`."""
    tokens = max(1, softmax.chunk // len(weight_VD))
    return _CrossEntropy.apply(x_TD, weight_VD, target_T, deferred, softmax, tokens)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x_TD, weight_VD, target_T, deferred, softmax, tokens
    ):
        wanted = any(ctx.needs_input_grad)
        loss = x_TD.new_zeros((), dtype=accurate_type(x_TD.dtype))
        normaliser_T = loss.new_empty(len(x_TD))
        grad_TD = torch.empty_like(x_TD) if wanted else None
        kept_TV = None
        for start in range(0, len(x_TD), tokens):
            rows = slice(start, start + tokens)
            logits_CV = softmax.prepare(linear_product(x_TD[rows], weight_VD))
            loss_C, normaliser_T[rows] = softmax.loss(logits_CV, target_T[rows])
            loss += loss_C.sum()
            if grad_TD is not None:
                kept_TV = softmax.gradient(logits_CV, normaliser_T[rows], target_T[rows])
                grad_TD[rows] = product(kept_TV.to(x_TD.dtype), weight_VD)
        if grad_TD is not None:
            whole = kept_TV if len(x_TD) <= tokens else None
            ctx.save_for_backward(x_TD, target_T, normaliser_T, grad_TD, whole)
            ctx.weight, ctx.deferred, ctx.tokens = weight_VD, deferred, tokens
            ctx.softmax = softmax
        return loss

    @staticmethod
    def backward(ctx, scale):  # type: ignore[no-untyped-def]
        x_TD, target_T, normaliser_T, grad_TD, whole_TV = ctx.saved_tensors
        weight_VD, softmax = ctx.weight, ctx.softmax

        def accumulate() -> None:
            into_VD = gradient_of(weight_VD)
            for start in range(0, len(x_TD), ctx.tokens):
                rows = slice(start, start + ctx.tokens)
                gradient_CV = whole_TV
                if gradient_CV is None:
                    logits_CV = softmax.prepare(linear_product(x_TD[rows], weight_VD))
                    gradient_CV = softmax.gradient(logits_CV, normaliser_T[rows], target_T[rows])
                scaled_CV = gradient_CV.mul_(scale).to(x_TD.dtype)
                add_product(into_VD, scaled_CV, x_TD[rows])

        ctx.deferred.defer(accumulate)
        return (grad_TD * scale).to(grad_TD.dtype), None, None, None, None, None


def _prepare(logits_CV: Tensor) -> Tensor:
    return logits_CV.to(accurate_type(logits_CV.dtype))


def _loss(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    normaliser_C = logits_CV.logsumexp(-1)
    chosen_C = logits_CV.gather(-1, target_C.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (normaliser_C - chosen_C).masked_fill(target_C == IGNORED, 0), normaliser_C


def _gradient(logits_CV: Tensor, normaliser_C: Tensor, target_C: Tensor) -> Tensor:
    """Softmax minus one-hot, zero where there is no target."""
    probability_CV = logits_CV.sub_(normaliser_C.unsqueeze(-1)).exp_()
    one_C = -torch.ones_like(normaliser_C)
    probability_CV.scatter_add_(-1, target_C.clamp(min=0).unsqueeze(-1), one_C.unsqueeze(-1))
    return probability_CV.masked_fill_((target_C == IGNORED).unsqueeze(-1), 0)


SOFTMAX = Softmax(_prepare, _loss, _gradient, 2**24)  # 64 MiB in float32
