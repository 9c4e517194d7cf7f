"""How generated texts are shown: as they come, or as JSON lines."""

from __future__ import annotations

import codecs
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.text import Text

from parallel.files.shown import printable
from trainer.data.text_stream import TextStream
from trainer.generate.answer import Answer
from trainer.generate.question import Question
from trainer.generate.report import all_in_words, as_json, in_words
from trainer.generate.text_model import TextModel
from trainer.io.terminal import plain_console

# What a terminal obeys: control characters except newline and tab, and the direction of text.
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Output(Protocol):
    """Shows each answer: `start`, then `push` for each new token, then `finish`."""

    def start(self, question: Question) -> None: ...

    def push(self, token: int) -> None: ...

    def finish(self, question: Question, made: Answer, plain: Answer | None) -> None:
        """plain: the same text by plain decoding, if there is one to compare with."""
        ...


class TextOutput:
    """Prompt and text on stdout, as they come; what each cost on stderr."""

    def __init__(self, text_model: TextModel, echo: bool, count: int) -> None:
        """echo: print the prompt before its text. count: of prompts, numbered if more than one."""
        self._text_model, self._echo, self._count = text_model, echo, count
        self._number = self._new_tokens = 0
        self._begun = time.monotonic()
        self._stream = TextStream(text_model.tokenizer)

    def start(self, question: Question) -> None:
        self._number += 1
        if self._count > 1:
            _write(f"--- prompt {self._number} of {self._count} ---\n")
        if self._echo:
            _write_dim(_whole_characters(question.prompt))
        self._stream = TextStream(self._text_model.tokenizer)
        for token in question.tokens:
            self._stream.push(token)

    def push(self, token: int) -> None:
        _write(self._stream.push(token))

    def finish(self, question: Question, made: Answer, plain: Answer | None) -> None:
        _write(self._stream.end() + "\n")
        print(in_words(made, plain, self._text_model.longest), file=sys.stderr, flush=True)
        self._new_tokens += len(made.tokens)
        if self._number == self._count > 1:
            seconds = time.monotonic() - self._begun
            print(all_in_words(self._count, self._new_tokens, seconds), file=sys.stderr, flush=True)


class JsonOutput:
    """One JSON object per prompt, each on a line of stdout as soon as it is complete."""

    def __init__(self, text_model: TextModel, checkpoint: Path) -> None:
        self._text_model, self._checkpoint = text_model, checkpoint
        self._waiting = Waiting("decoding", 0)

    def start(self, question: Question) -> None:
        self._waiting = Waiting("decoding", question.new_tokens)

    def push(self, token: int) -> None:
        self._waiting.push(token)

    def finish(self, question: Question, made: Answer, plain: Answer | None) -> None:
        self._waiting.end()
        asked = {
            "checkpoint": str(self._checkpoint),
            "prompt": question.prompt.decode(errors="replace"),
            "text": _text_after(self._text_model, question.tokens, made.tokens),
        }
        _write(json.dumps(asked | as_json(made, plain)) + "\n")


class Waiting:
    """A progress line on a terminal, while no text is shown."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._done, self._total = what, 0, total
        self._begun = self._said = time.monotonic()

    def push(self, token: int) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said > 0.2:
            self._said, rate = now, self._done / (now - self._begun)
            left = (self._total - self._done) / rate
            count = f"{self._done:,} of {self._total:,} tokens"
            self._line(f"{self._what}: {count}, {rate:,.1f}/s, {left:,.0f} s left")

    def end(self) -> None:
        self._line("")

    def _line(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{' ' * 79}\r{text}", end="", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """`text` with all that a terminal would obey written as an escape; newline and tab stay."""
    return _OBEYED.sub(lambda found: printable(found[0]), text)


def _write(text: str) -> None:
    """Write to stdout at once: unchanged to a pipe, made harmless to a terminal."""
    text = visible(text) if sys.stdout.isatty() else text
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _write_dim(text: str) -> None:
    if sys.stdout.isatty():
        plain_console().print(Text(visible(text), style="dim"), end="")
    else:
        _write(text)


def _whole_characters(prompt: bytes) -> str:
    """The prompt without a last character that is incomplete: new tokens may complete it."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(prompt)


def _text_after(text_model: TextModel, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of `tokens` as it is read after `prompt`."""
    stream = TextStream(text_model.tokenizer)
    for token in prompt:
        stream.push(token)
    return "".join(map(stream.push, tokens)) + stream.end()
