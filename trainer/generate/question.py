"""A prompt that fits: its tokens, and how many new ones to make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trainer.errors import ConfigError
from trainer.generate.text_model import TextModel

Limit: TypeAlias = Literal["max_new_tokens", "max_position_embeddings"]


@dataclass(frozen=True)
class Question:
    """prompt: as given, UTF-8. tokens: at least one. new_tokens: to make at most; limit: what
    decides this number."""

    prompt: bytes
    tokens: list[int]
    new_tokens: int
    limit: Limit


def questions(
    text_model: TextModel, prompts: Sequence[bytes], wanted: int | None, usual: int
) -> list[Question]:
    """All prompts, before any is answered.

    wanted: new tokens for each; None is the usual number, or what there is room for. Raises
    ConfigError for a prompt that is not UTF-8 or does not fit, by its number where there are more.
    """
    found = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            found.append(_question(text_model, prompt, wanted, usual))
        except ConfigError as error:
            where = f"prompt {number} of {len(prompts)}: " if len(prompts) > 1 else ""
            raise ConfigError(f"{where}{error}") from error
    return found


def _question(text_model: TextModel, prompt: bytes, wanted: int | None, usual: int) -> Question:
    tokens = text_model.prompt_tokens(prompt)
    new_tokens = text_model.room(len(tokens), wanted, usual)
    text_model.require_memory(len(tokens) + new_tokens)
    cut = wanted is None and new_tokens < usual
    return Question(
        prompt, tokens, new_tokens, "max_position_embeddings" if cut else "max_new_tokens"
    )
