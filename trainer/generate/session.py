"""Answering prompts one after the other with one loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from trainer.errors import RunError
from trainer.generate.answer import Decoding, answer
from trainer.generate.choose import Sampler, most_likely
from trainer.generate.decode import decode
from trainer.generate.output import Output, Waiting
from trainer.generate.question import Question
from trainer.generate.report import require_same
from trainer.generate.speculate import speculate
from trainer.generate.text_model import TextModel


@dataclass(frozen=True)
class Method:
    """How to decode: temperature 0 is greedy. speculative: with drafts of the MTP modules, greedy
    only. compare: decode plainly too, and compare the tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    speculative: bool = False
    compare: bool = False

    def decoding(self, number: int) -> Decoding:
        """The decoding of prompt `number`, from 0: it is sampled with seed + number, so that its
        text does not depend on the prompts before, and the same prompt twice has two texts."""
        if self.speculative:
            return speculate
        if not self.temperature:
            return partial(decode, choose=most_likely)
        generator = torch.Generator().manual_seed(self.seed + number)
        return partial(decode, choose=Sampler(self.temperature, self.top_p, generator))


def answer_all(
    text_model: TextModel, asked: Sequence[Question], method: Method, output: Output
) -> None:
    """Answer the questions in turn. Raises RunError where drafts led to another text, and where
    the model computes no numbers."""
    for number, question in enumerate(asked):
        try:
            _answer(text_model, question, number, method, output)
        except RunError as error:
            where = f"prompt {number + 1} of {len(asked)}: " if len(asked) > 1 else ""
            raise RunError(f"{where}{error}") from error


def _answer(
    text_model: TextModel, question: Question, number: int, method: Method, output: Output
) -> None:
    plain = None
    if method.compare:
        waiting = Waiting("plain decoding", question.new_tokens)
        greedy: Decoding = partial(decode, choose=most_likely)
        plain = answer(text_model, question, greedy, waiting.push)
        waiting.end()
    output.start(question)
    show: Callable[[int], None] = output.push
    made = answer(text_model, question, method.decoding(number), show)
    if plain is not None:
        require_same(made, plain)
    output.finish(question, made, plain)
