"""Routing that is forced to balance, for benchmarks only: every expert gets as many tokens as the
others, whatever the scores say.

A token goes to the least used groups, and there to the least used experts, where equal ones take
turns at random, from a fixed seed. So all loads are equal where the choices can be dealt out
evenly, and differ by a token or two elsewhere; a token reaches as many groups as the model lets it,
and about as many ranks as with uniform choices.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.expert.router import RouterOptions, weigh

SEED = 0


def choose_balanced(
    scores_TE: Tensor, bias_E: Tensor, options: RouterOptions
) -> tuple[Tensor, Tensor]:
    """In place of `router.choose`: experts by the number of the token alone, weighed by their
    scores."""
    chosen = balanced_choices(*scores_TE.shape, options)
    experts_TK = torch.tensor(chosen, device=scores_TE.device)
    return weigh(scores_TE, experts_TK, options), experts_TK


@functools.lru_cache(maxsize=4)
def balanced_choices(
    tokens: int, experts: int, options: RouterOptions
) -> tuple[tuple[int, ...], ...]:
    """By token, the experts that it goes to, all different."""
    order = random.Random(SEED)
    per_group = experts // options.groups
    groups = [range(g * per_group, (g + 1) * per_group) for g in range(options.groups)]
    load = [0] * experts

    def least(of: Sequence[int], used: Sequence[int], count: int) -> list[int]:
        return sorted(of, key=lambda each: (used[each], order.random()))[:count]

    def next_token() -> tuple[int, ...]:
        totals = [sum(load[expert] for expert in group) for group in groups]
        chosen: list[int] = []
        for number, group in enumerate(least(range(len(groups)), totals, options.top_groups)):
            share = len(range(number, options.top_k, options.top_groups))  # dealt in turn
            chosen += least(groups[group], load, share)
        for expert in chosen:
            load[expert] += 1
        return tuple(chosen)

    return tuple(next_token() for _ in range(tokens))
