"""Which experts a token goes to, and how much each counts: pure functions of scores.

Source: DeepSeek-V3 (arXiv 2412.19437) sections 2.1.2 and 4.2; DeepSeek-V2 (arXiv 2405.04434) 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class RouterOptions:
    """How tokens choose experts.

    score: "sigmoid" (V3; a group scores the sum of its two best) or "softmax" (V2; its best).
    top_k: experts per token. groups, top_groups: experts lie in `groups` equal groups, and a token
    chooses among those of its `top_groups` best groups. normalise: divide the chosen weights by
    their sum. scale: factor on the weights.
    """

    score: Literal["sigmoid", "softmax"] = "sigmoid"
    top_k: int = 2
    groups: int = 1
    top_groups: int = 1
    normalise: bool = True
    scale: float = 1.0


def scores(logits_TE: Tensor, options: RouterOptions) -> Tensor:
    """Affinities [T, E] of tokens to experts (V3 eq. 15: sigmoid)."""
    if options.score == "sigmoid":
        return logits_TE.sigmoid()
    return logits_TE.softmax(-1)


def choose(scores_TE: Tensor, bias_E: Tensor, options: RouterOptions) -> tuple[Tensor, Tensor]:
    """Choose experts on biased scores and weigh them by unbiased ones (V3 eq. 12, 13 and 16).

    Returns weights [T, K], differentiable in the scores, and experts [T, K] (int64).
    """
    biased_TE = scores_TE.detach() + bias_E
    if options.groups > 1:
        biased_TE = _keep_best_groups(biased_TE, options)
    experts_TK = biased_TE.topk(options.top_k, dim=-1, sorted=False).indices
    return weigh(scores_TE, experts_TK, options), experts_TK


Choose: TypeAlias = Callable[[Tensor, Tensor, RouterOptions], tuple[Tensor, Tensor]]
"""`choose`, or what stands in its place."""


def weigh(scores_TE: Tensor, experts_TK: Tensor, options: RouterOptions) -> Tensor:
    """Routing weights [T, K] of experts that have been chosen (V3 eq. 13)."""
    weights_TK = scores_TE.gather(-1, experts_TK)
    if options.normalise:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * options.scale


def _keep_best_groups(biased_TE: Tensor, options: RouterOptions) -> Tensor:
    """Biased scores with those outside each token's best groups at minus infinity."""
    grouped_TGM = biased_TE.unflatten(-1, (options.groups, -1))
    best = min(2, grouped_TGM.shape[-1]) if options.score == "sigmoid" else 1
    group_scores_TG = grouped_TGM.topk(best, dim=-1).values.sum(-1)
    kept_TM = group_scores_TG.topk(options.top_groups, dim=-1, sorted=False).indices
    dropped_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter(-1, kept_TM, False)
    return grouped_TGM.masked_fill(dropped_TG.unsqueeze(-1), float("-inf")).flatten(-2)


def sequence_hits(scores_BTE: Tensor, top_k: int) -> Tensor:
    """How many of the T tokens of each sequence have each expert among their top K, [B, E]. By
    unbiased scores, as the paper writes it."""
    chosen_BTK = scores_BTE.detach().topk(top_k, dim=-1, sorted=False).indices
    ones = torch.ones_like(chosen_BTK, dtype=scores_BTE.dtype)
    hits_BE = scores_BTE.new_zeros(scores_BTE.shape[0], scores_BTE.shape[-1])
    return hits_BE.scatter_add_(-1, chosen_BTK.flatten(-2), ones.flatten(-2))


def sequence_balance(scores_BTE: Tensor, hits_BE: Tensor, top_k: int, sequence: int) -> Tensor:
    """Sequence-wise balance of each sequence, [B]: sum over experts of f_i P_i (V3 eq. 17 to 20).

    1.0 is perfect balance. scores: of all tokens of each sequence, or of some: then the balances
    of all parts add up. hits: of all. sequence: tokens of one.
    """
    f_BE = hits_BE * scores_BTE.shape[-1] / (top_k * sequence)
    P_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True)).sum(-2) / sequence
    return (f_BE * P_BE).sum(-1)


def expert_load(experts_TK: Tensor, experts: int) -> Tensor:
    """Tokens sent to each expert, [E] (int64)."""
    return count(experts_TK.flatten(), experts)


def count(numbers_P: Tensor, most: int) -> Tensor:
    """How often each of 0 .. most - 1 occurs, [most] (int64). bincount would read the largest."""
    counts = numbers_P.new_zeros(most, dtype=torch.int64)
    return counts.scatter_add_(0, numbers_P.long(), torch.ones_like(numbers_P, dtype=torch.int64))


@torch.no_grad()
def move_bias(bias_E: Tensor, load_E: Tensor, gamma: float) -> None:
    """Auxiliary-loss-free balancing (V3 section 2.1.2): after a step, raise by gamma the bias of
    each expert below the mean of the global batch's load, lower it above."""
    load_E = load_E.to(bias_E.dtype)
    bias_E.add_(gamma * torch.sign(load_E.mean() - load_E))
