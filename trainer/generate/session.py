"""Answering prompts with one loaded model: together, or one after the other with drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.errors import RunError
from trainer.generate.answer import Answer, Writing
from trainer.generate.choose import Choose, NotFinite, Sampler, greedy
from trainer.generate.decode import Counts, decode
from trainer.generate.in_order import InOrder
from trainer.generate.output import Output, Waiting
from trainer.generate.question import Question
from trainer.generate.report import require_same
from trainer.generate.speculate import speculate
from trainer.generate.text_model import TextModel, machine_memory

# Texts are decoded together as long as their caches take no more than this share of all memory.
_CACHE_SHARE = 0.25


@dataclass(frozen=True)
class Method:
    """How to decode: temperature 0 is greedy. speculative: with drafts of the MTP modules, greedy
    only. compare: decode plainly too, and compare the tokens. batch: texts at once at most; None is
    as many as there is memory for."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    speculative: bool = False
    compare: bool = False
    batch: int | None = None

    def choose(self) -> Choose:
        """The choice of tokens. Prompt `number`, from 0, is sampled with seed + number, so that its
        text does not depend on the other prompts, and the same prompt twice has two texts."""
        return Sampler(self.temperature, self.top_p, self.seed) if self.temperature else greedy


def answer_all(
    text_model: TextModel, asked: Sequence[Question], method: Method, output: Output
) -> None:
    """Answer the questions, shown in their order. Raises RunError where drafts led to another text,
    and where the model computes no numbers."""
    if not method.speculative:
        _answer_together(text_model, asked, method, output)
        return
    for number, question in enumerate(asked):
        try:
            _answer_with_drafts(text_model, question, method, output)
        except RunError as error:
            raise _naming(error, number, asked) from error


def _answer_together(
    text_model: TextModel, asked: Sequence[Question], method: Method, output: Output
) -> None:
    shown = InOrder(asked, output)
    writings: list[Writing] = []

    def prompts() -> Iterator[Sequence[int]]:
        for number, question in enumerate(asked):
            writings.append(Writing(question, text_model.ends, shown.pusher(number)))
            yield question.tokens

    def push(number: int, token: int) -> bool:
        goes_on = writings[number].push(token)
        if not goes_on:
            shown.finish(number, writings[number].answer())
        return goes_on

    positions = max(map(positions_of, asked))
    model = text_model.start_texts(positions, slots(text_model, asked, method.batch))
    try:
        decode(model, prompts(), method.choose(), push)
    except NotFinite as error:
        raise _naming(error, error.row, asked) from error


def _answer_with_drafts(
    text_model: TextModel, question: Question, method: Method, output: Output
) -> None:
    plain = _plain(text_model, question) if method.compare else None
    output.start(question)
    counts = Counts()
    writing = Writing(question, text_model.ends, output.push)
    model = text_model.start_texts(positions_of(question))
    for token in speculate(model, question.tokens, counts):
        if not writing.push(token):
            break
    made = writing.answer(counts)
    if plain is not None:
        require_same(made, plain)
    output.finish(question, made, plain)


def _plain(text_model: TextModel, question: Question) -> Answer:
    """The same without drafts."""
    waiting = Waiting("plain decoding", question.new_tokens)
    writing = Writing(question, text_model.ends, waiting.push)
    model = text_model.start_texts(positions_of(question))
    decode(model, [question.tokens], greedy, lambda _, token: writing.push(token))
    waiting.end()
    return writing.answer()


def positions_of(question: Question) -> int:
    """Tokens of the text that the model reads; the last one is never read."""
    return len(question.tokens) + question.new_tokens - 1


def slots(text_model: TextModel, asked: Sequence[Question], batch: int | None) -> int:
    """How many of the texts to decode at once: `batch`, or what memory suggests."""
    if batch is not None:
        return min(batch, len(asked))
    each = text_model.cache_bytes(max(map(positions_of, asked)))
    return max(1, min(len(asked), int(_CACHE_SHARE * machine_memory()) // max(1, each)))


def _naming(error: RunError, number: int, asked: Sequence[Question]) -> RunError:
    """The error with the prompt that it is about, where there are several."""
    where = f"prompt {number + 1} of {len(asked)}: " if len(asked) > 1 else ""
    return RunError(f"{where}{error}")
