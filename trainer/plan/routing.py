"""How far a token travels to its experts, on average, when every choice is equally likely.

A token chooses `top_groups` of the groups of experts and `top_k` experts in them, without repeats
(DeepSeek-V3, section 2.1.2, node-limited routing). A bin is what one copy of it serves: a rank, or
a node. Exact, by counting.
"""

from __future__ import annotations

from collections import Counter
from math import comb

from trainer.config.schema import MoEConfig


def bins_reached(moe: MoEConfig, bins: int) -> float:
    """Expected number of bins with a chosen expert, where each of `bins` holds as many consecutive
    experts."""
    size = moe.experts // bins
    return sum(_reached(moe, range(b * size, (b + 1) * size)) for b in range(bins))


def _reached(moe: MoEConfig, experts: range) -> float:
    """The chance that a token chooses one of `experts`."""
    group_size = moe.experts // moe.groups
    overlaps = Counter(expert // group_size for expert in experts)
    # Ways to choose groups, by how many of the bin's and by how many of its experts are in them.
    ways: Counter[tuple[int, int]] = Counter({(0, 0): 1})
    for overlap in overlaps.values():
        more = Counter({(n + 1, held + overlap): count for (n, held), count in ways.items()})
        ways += more
    elsewhere, open_to_it = moe.groups - len(overlaps), moe.top_groups * group_size
    missed = sum(
        count * comb(elsewhere, moe.top_groups - n) * comb(open_to_it - held, moe.top_k)
        for (n, held), count in ways.items()
        if n <= moe.top_groups
    )
    return 1 - missed / (comb(moe.groups, moe.top_groups) * comb(open_to_it, moe.top_k))
