"""One generated text, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.generate.decode import Counts
from trainer.generate.question import Limit, Question


@dataclass(frozen=True)
class Answer:
    """prompt_tokens: how many. tokens: new ones, without one that ends the text. limit: what ended
    the text where no such token came. prompt_seconds: until the first token was chosen. seconds:
    from there on, for `steps` further tokens, the one that ends the text among them; other texts
    may have been decoded with it."""

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


class Writing:
    """An answer while it is made, token by token."""

    def __init__(
        self, question: Question, ends: frozenset[int], show: Callable[[int], None]
    ) -> None:
        """ends: tokens that end a text. show: sees each token of the answer as it comes."""
        self._question, self._ends, self._show = question, ends, show
        self._tokens: list[int] = []
        self._ended = False
        self._started = self._first = self._last = time.monotonic()
        self._steps = -1

    def push(self, token: int) -> bool:
        """Take the next token; returns whether the text goes on."""
        self._last = time.monotonic()
        if self._steps < 0:
            self._first = self._last
        self._steps += 1
        self._ended = token in self._ends
        if self._ended:
            return False
        self._tokens.append(token)
        self._show(token)
        return len(self._tokens) < self._question.new_tokens

    def answer(self, counts: Counts | None = None) -> Answer:
        """counts: of the decoding; None where each step is a pass."""
        return Answer(
            len(self._question.tokens),
            tuple(self._tokens),
            None if self._ended else self._question.limit,
            self._first - self._started,
            self._last - self._first,
            self._steps,
            Counts(self._steps) if counts is None else counts,
        )
