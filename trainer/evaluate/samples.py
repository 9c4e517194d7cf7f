"""Texts that a checkpoint writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.evaluate.measure import Dtype, torch_type
from trainer.generate.continue_texts import continue_texts
from trainer.generate.text_model import load_text_model


def samples(folder: Path, prompts: Sequence[str], new_tokens: int, dtype: Dtype) -> list[str]:
    """What comes after each prompt, greedily. Raises CheckpointError, ConfigError and DataError."""
    if not prompts:
        return []
    model = load_text_model(folder, None, torch_type(dtype), False, lambda done, total: None)
    tokens = [model.prompt_tokens(prompt) for prompt in prompts]
    texts = continue_texts(model, tokens, new_tokens, ends=model.ends)
    return [model.tokenizer.decode(np.array(text)).decode(errors="replace") for text in texts]
