"""One generated text, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.generate.cached_model import CachedModel
from trainer.generate.decode import Counts
from trainer.generate.text_model import TextModel

Decoding = Callable[[CachedModel, Sequence[int], Counts], Iterator[int]]


@dataclass(frozen=True)
class Answer:
    """prompt_tokens: how many. tokens: new ones, without one that ends the text. ended: such a
    token came, rather than the limit. prompt_seconds: until the first token was chosen. seconds:
    from there on, for `steps` further tokens, the one that ends the text among them."""

    prompt_tokens: int
    tokens: tuple[int, ...]
    ended: bool
    prompt_seconds: float
    seconds: float
    steps: int
    counts: Counts

    def tokens_per_second(self) -> float | None:
        """Behind the first token; None where there was only one."""
        return self.steps / self.seconds if self.steps else None

    def tokens_per_forward(self) -> float | None:
        """Tokens for each pass of the main model, behind the prompt; None without such a pass."""
        return self.steps / self.counts.forwards if self.counts.forwards else None

    def acceptance(self) -> list[float | None]:
        """Share of the drafts of each MTP depth that held, with all drafts before them."""
        pairs = zip(self.counts.accepted, self.counts.offered)
        return [accepted / offered if offered else None for accepted, offered in pairs]

    def numbers(self) -> dict[str, Any]:
        """All but the tokens, for JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.tokens),
            "ended": self.ended,
            "prompt_seconds": self.prompt_seconds,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second(),
            "tokens_per_forward": self.tokens_per_forward(),
            "acceptance": self.acceptance(),
        }


def answer(
    text_model: TextModel,
    prompt: Sequence[int],
    new_tokens: int,
    decoding: Decoding,
    show: Callable[[int], None],
) -> Answer:
    """Up to `new_tokens` tokens behind a prompt of at least one; `show` sees each as it comes."""
    counts, tokens, ended = Counts(), [], False
    begin = time.monotonic()
    model = text_model.begin(len(prompt) + new_tokens - 1)  # the last one is never read
    first = last = begin
    steps = -1
    for token in decoding(model, prompt, counts):
        last = time.monotonic()
        first = last if steps < 0 else first
        steps += 1
        ended = token in text_model.ends
        if ended:
            break
        tokens.append(token)
        show(token)
        if len(tokens) == new_tokens:
            break
    took, rest = first - begin, last - first
    return Answer(len(prompt), tuple(tokens), ended, took, rest, steps, counts)
