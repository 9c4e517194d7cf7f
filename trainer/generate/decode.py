"""Decoding one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trainer.generate.cached_model import CachedModel

Choose = Callable[[Tensor], int]


@dataclass
class Counts:
    """What a decoding has done so far.

    forwards: passes of the main model after the prompt. offered, accepted: drafts of each MTP
    depth, from 1, that were verified, and that held (with all before them).
    """

    forwards: int = 0
    offered: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


def decode(
    model: CachedModel, prompt: Sequence[int], counts: Counts, choose: Choose
) -> Iterator[int]:
    """New tokens without end, after a prompt of at least one token.

    To take n of them needs a model with len(prompt) + n - 1 positions.
    """
    for hidden_TD in model.read(prompt):
        last_1D = hidden_TD[-1:]
    while True:
        token = choose(model.logits(last_1D)[0])
        yield token
        counts.forwards += 1
        last_1D = model.hidden([token])
