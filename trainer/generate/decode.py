"""Decoding texts together, one token of each after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

import torch
from torch import Tensor

from trainer.generate.cached_model import CachedModel
from trainer.generate.choose import Choose, NotFinite


@dataclass
class Counts:
    """What decoding has done for a text so far.

    forwards: passes of the main model after the prompt. offered, accepted: drafts of each MTP
    depth, from 1, that were verified, and that held (with all before them).
    """

    forwards: int = 0
    offered: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


def decode(
    model: CachedModel,
    prompts: Iterable[Sequence[int]],
    choose: Choose,
    push: Callable[[int, int], bool],
) -> None:
    """After each prompt of at least one token, new ones until push(number, token) is False.

    number: of the prompt. As many texts are decoded at once as the model has slots; the next prompt
    is taken when one of them has ended, for its place. n new tokens after a prompt need
    len(prompt) + n - 1 positions. Raises NotFinite, of which the row is the number of a prompt.
    """
    waiting = enumerate(prompts)
    running: list[int] = []  # numbers, by slot
    tokens: list[int] = []  # the last of each, not read yet
    while True:
        hidden = [model.hidden([[token] for token in tokens])] if running else []
        if new := list(islice(waiting, model.slots - len(running))):
            hidden.append(_read(model, [prompt for _, prompt in new], len(running)))
            running += [number for number, _ in new]
        if not running:
            return
        tokens = _choose(model.logits(torch.cat(hidden)), running, choose)
        goes_on = [push(*each) for each in zip(running, tokens)]
        for slot in reversed(range(len(running))):
            if not goes_on[slot]:
                model.drop(slot, len(running) - 1)
                running[slot], tokens[slot] = running[-1], tokens[-1]
                del running[-1], tokens[-1]


def _read(model: CachedModel, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
    """The hidden state of the last token of each prompt, [prompts, D]."""
    last: dict[int, Tensor] = {}
    for index, counts, hidden_TD in model.read(prompts, first):
        for prompt, end in enumerate(accumulate(counts), start=index):
            last[prompt] = hidden_TD[end - 1]
    return torch.stack(list(last.values()))


def _choose(logits_BV: Tensor, numbers: Sequence[int], choose: Choose) -> list[int]:
    try:
        return choose(logits_BV, numbers)
    except NotFinite as error:
        raise NotFinite(numbers[error.row]) from error
