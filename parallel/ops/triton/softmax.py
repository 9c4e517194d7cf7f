"""Loss and gradient of a chunk of logits, each in one kernel: the logits stay in the type of the
product that made them, and are computed with in float32.

Shapes: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.ops.cross_entropy import IGNORED, Softmax
from parallel.ops.triton.compiler import ceil_div, jit, launch, tl

_BLOCK = 4096  # logits at once


def loss_and_normaliser(logits_CV: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token, 0 where its target is IGNORED, and the log of the sum of the
    exponentials of its logits; both float32 [C]. Logits are contiguous."""
    tokens, vocabulary = logits_CV.shape
    loss_C, normaliser_C = torch.empty(2, tokens, device=logits_CV.device)
    launch(_loss, (tokens,), logits_CV, target_C, loss_C, normaliser_C, vocabulary, IGNORED, _BLOCK)
    return loss_C, normaliser_C


def gradient_(logits_CV: Tensor, normaliser_C: Tensor, target_C: Tensor) -> Tensor:
    """Of the summed loss by the logits, in place of the logits and in their type."""
    tokens, vocabulary = logits_CV.shape
    grid = (tokens, ceil_div(vocabulary, _BLOCK))
    launch(_gradient, grid, logits_CV, normaliser_C, target_C, vocabulary, IGNORED, _BLOCK)
    return logits_CV


@jit
def _loss(logits_CV, target_C, loss_C, normaliser_C, vocabulary, ignored, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row, target = logits_CV + token * vocabulary, tl.load(target_C + token)
    # Each lane has its own largest and its own sum, so that lanes meet only once.
    largest_B = tl.full((BLOCK,), -1e30, tl.float32)
    sum_B = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        place_B = first + tl.arange(0, BLOCK)
        logit_B = tl.load(row + place_B, mask=place_B < vocabulary, other=-float("inf"))
        logit_B = logit_B.to(tl.float32)
        larger_B = tl.maximum(largest_B, logit_B)
        sum_B = sum_B * tl.exp(largest_B - larger_B) + tl.exp(logit_B - larger_B)
        largest_B = larger_B
    largest = tl.max(largest_B, 0)
    normaliser = largest + tl.log(tl.sum(sum_B * tl.exp(largest_B - largest), 0))
    chosen = tl.load(row + target, mask=target != ignored, other=0.0).to(tl.float32)
    tl.store(normaliser_C + token, normaliser)
    tl.store(loss_C + token, tl.where(target == ignored, 0.0, normaliser - chosen))


@jit
def _gradient(logits_CV, normaliser_C, target_C, vocabulary, ignored, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    place_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, target = logits_CV + token * vocabulary + place_B, tl.load(target_C + token)
    logit_B = tl.load(at, mask=place_B < vocabulary, other=-float("inf")).to(tl.float32)
    gradient_B = tl.exp(logit_B - tl.load(normaliser_C + token))
    gradient_B = tl.where(place_B == target, gradient_B - 1.0, gradient_B)
    gradient_B = tl.where(target == ignored, 0.0, gradient_B)
    tl.store(at, gradient_B.to(logits_CV.dtype.element_ty), mask=place_B < vocabulary)


SOFTMAX = Softmax(Tensor.contiguous, loss_and_normaliser, gradient_, 2**27)
"""256 MiB of logits in bfloat16 at once: products of some thousand tokens at DeepSeek-V3's
vocabulary, so that the weights of the head are not read too often."""
