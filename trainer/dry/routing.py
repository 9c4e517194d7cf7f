"""The routing that a dry run assumes: every expert gets equally many tokens, on all ranks alike.

Scores have no numbers in a dry run, so the choice of experts is made here. A token reaches about as
many ranks as one that chooses at random; that choices keep to some groups is left out.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BalancedRouting:
    """experts: of a layer. each: experts of a rank. chosen: by each token, K.

    Tokens take the next K cards of a shuffled deck of all experts. When deck and tokens end
    together the deck is moved on by one rank; once it has been at all ranks, each has got exactly
    as many tokens as every other.
    """

    experts: int
    each: int
    chosen: int

    def is_even(self, tokens: int) -> bool:
        """Whether so many tokens go to all ranks alike."""
        round_of_ranks = math.lcm(self.experts, self.chosen) * self.experts // self.each
        return tokens * self.chosen % round_of_ranks == 0

    def decides(self, scores: Tensor, chosen: int) -> bool:
        """Whether these scores, of which so many are the best, choose experts for tokens."""
        return scores.ndim == 2 and (scores.shape[1], chosen) == (self.experts, self.chosen)

    def experts_of(self, tokens: int) -> Tensor:
        """The experts of each token, [T, K] (int64)."""
        deck = list(range(self.experts))
        random.Random(0).shuffle(deck)
        card_N = torch.arange(tokens * self.chosen)
        rounds_N = card_N // math.lcm(self.experts, self.chosen)
        experts_N = torch.tensor(deck)[card_N % self.experts] + rounds_N * self.each
        return (experts_N % self.experts).view(tokens, self.chosen)
