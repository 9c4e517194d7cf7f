"""One generated text, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.generate.cached_model import CachedModel
from trainer.generate.decode import Counts
from trainer.generate.question import Limit, Question
from trainer.generate.text_model import TextModel

Decoding = Callable[[CachedModel, Sequence[int], Counts], Iterator[int]]


@dataclass(frozen=True)
class Answer:
    """prompt_tokens: how many. tokens: new ones, without one that ends the text. limit: what ended
    the text where no such token came. prompt_seconds: until the first token was chosen. seconds:
    from there on, for `steps` further tokens, the one that ends the text among them."""

    prompt_tokens: int
    tokens: tuple[int, ...]
    limit: Limit | None
    prompt_seconds: float
    seconds: float
    steps: int
    counts: Counts

    @property
    def ended(self) -> bool:
        """Whether the text ended by itself."""
        return self.limit is None

    def tokens_per_second(self) -> float | None:
        """After the first token; None where there was only one."""
        return self.steps / self.seconds if self.steps else None

    def tokens_per_forward(self) -> float | None:
        """Tokens for each pass of the main model after the prompt; None without such a pass."""
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
            "limit": self.limit,
            "prompt_seconds": self.prompt_seconds,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second(),
            "tokens_per_forward": self.tokens_per_forward(),
            "acceptance": self.acceptance(),
        }


def answer(
    text_model: TextModel, question: Question, decoding: Decoding, show: Callable[[int], None]
) -> Answer:
    """The text that follows a prompt; `show` sees each token as it comes."""
    prompt, new_tokens = question.tokens, question.new_tokens
    counts, tokens, ended = Counts(), [], False
    started = time.monotonic()
    model = text_model.start_text(len(prompt) + new_tokens - 1)  # the last one is never read
    first = last = started
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
    limit = None if ended else question.limit
    return Answer(len(prompt), tuple(tokens), limit, first - started, last - first, steps, counts)
