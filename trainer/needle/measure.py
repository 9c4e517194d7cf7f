"""How often a checkpoint finds the needle, by length of the text and depth of the needle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.generate.continue_texts import continue_texts
from trainer.generate.text_model import TextModel, load_text_model
from trainer.needle.haystack import Question, question

_AT_ONCE = 16  # texts
Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """shares[i][j]: of the needles at depths[j] of texts of lengths[i] characters, those that were
    found. tried: needles for each. name: of the checkpoint."""

    name: str
    lengths: list[int]
    depths: list[float]
    shares: list[list[float]]
    tried: int

    def by_length(self) -> list[float]:
        """Means over depths."""
        return [float(np.mean(row)) for row in self.shares]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"by_length": self.by_length()}


def load(folder: Path) -> TextModel:
    """Raises CheckpointError, ConfigError and DataError."""
    return load_text_model(folder, None, torch.float32, False, lambda done, total: None)


def measure(
    text_model: TextModel,
    name: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    tried: int,
    seed: int,
    show: Show,
) -> Found:
    """A needle is found if the model goes on with its number, greedily. Texts may be longer than
    those that the checkpoint says it is for. show(done, total): texts."""
    total, done, shares = len(lengths) * len(depths) * tried, 0, []
    for length in lengths:
        row = []
        for depth in depths:
            random = np.random.RandomState([seed, length, round(1000 * depth)])
            asked = [question(length, depth, random) for _ in range(tried)]
            found = 0
            for start in range(0, tried, _AT_ONCE):
                part = asked[start : start + _AT_ONCE]
                found += sum(_answered(text_model, part))
                show(done := done + len(part), total)
            row.append(found / tried)
        shares.append(row)
    return Found(name, list(lengths), list(depths), shares, tried)


def _answered(text_model: TextModel, asked: Sequence[Question]) -> list[bool]:
    """Whether each is answered rightly."""
    tokenizer = text_model.tokenizer
    prompts = [text_model.prompt_tokens(each.text) for each in asked]
    new = max(len(tokenizer.encode(each.answer)) for each in asked)
    answers = (
        tokenizer.decode(np.array(tokens)).decode(errors="replace")
        for tokens in continue_texts(text_model, prompts, new)
    )
    return [answer.startswith(each.answer) for answer, each in zip(answers, asked)]
