"""Text from the same checkpoint by our generation and by `generate` of transformers, greedily, in
turns in one process. A step makes all its texts, their prompts included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from trainer.bench.against import comparable
from trainer.bench.asked import Texts
from trainer.bench.results import Agreement, Case, require_same, side_of
from trainer.bench.transformers_way import exported, load_theirs
from trainer.bench.turns import OnProgress, Step, Timed, Turns, take_turns, timed
from trainer.config.schema import Config
from trainer.generate.continue_texts import continue_texts
from trainer.generate.text_model import TextModel, load_text_model

# A choice between two tokens may hang on rounding, and the text from there on on the choice.
_OTHER_TEXTS = {"float64": 0.0, "float32": 0.1}


def against_generate(
    name: str, config: Config, asked: Sequence[Texts], turns: Turns, progress: OnProgress
) -> list[Case]:
    """A case for each of `asked`, which make texts of one length."""
    length = max(texts.prompt_tokens + texts.new_tokens for texts in asked)
    config = comparable(config)
    config = replace(config, data=replace(config.data, sequence_length=length))
    device = Process().device("cpu")
    with exported(config) as weights:
        dtype = PRECISIONS[config.precision.parameters].parameters
        text_model = load_text_model(weights, None, dtype, False, lambda done, total: None)
        their_model = load_theirs(weights, config).eval()
    steps: list[Step] = []
    for texts in asked:
        steps += [_ours(text_model, texts), _theirs(their_model, texts)]
    found = take_turns(steps, turns, partial(timed, device=device), progress)
    return [
        _case(f"{name}, batch {texts.batch}", texts, config, found[2 * n : 2 * n + 2], turns)
        for n, texts in enumerate(asked)
    ]


def _ours(text_model: TextModel, texts: Texts) -> Step:
    def step(number: int) -> list[list[int]]:
        prompts = _prompts(texts, text_model.model.vocab_size, number)
        return continue_texts(text_model, prompts.tolist(), texts.new_tokens)

    return step


def _theirs(model: Any, texts: Texts) -> Step:
    def step(number: int) -> list[list[int]]:
        prompts = _prompts(texts, model.config.vocab_size, number)
        made = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=texts.new_tokens,
            eos_token_id=None,  # every text is as long as asked
            pad_token_id=0,
        )
        tokens: list[list[int]] = made[:, texts.prompt_tokens :].tolist()
        return tokens

    return step


def _prompts(texts: Texts, vocabulary: int, step: int) -> Tensor:
    """Random tokens, [batch, prompt_tokens]."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(vocabulary, (texts.batch, texts.prompt_tokens), generator=generator)


def _case(
    name: str, texts: Texts, config: Config, found: Sequence[Sequence[Timed]], turns: Turns
) -> Case:
    """Of both sides' steps, whose results are texts."""
    ours, theirs = (
        replace(side_of(side, [steps], turns.warmup), losses=())
        for side, steps in zip(("Tandem", "transformers"), found)
    )
    pairs = [
        pair for mine, other in zip(*found) for pair in zip(mine.result, other.result, strict=True)
    ]
    differ = sum(mine != other for mine, other in pairs) / len(pairs)
    agreement = Agreement("texts", differ, _OTHER_TEXTS[config.precision.parameters])
    return require_same(Case(name, texts.batch * texts.new_tokens, ours, theirs, (agreement,)))
