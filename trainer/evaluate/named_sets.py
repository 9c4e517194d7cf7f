"""Named texts to evaluate on, as windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.bits_per_byte import bytes_per_token
from trainer.data.corpus import load_corpus
from trainer.data.sequences import windows
from trainer.data.shards.index import is_prepared, read_index
from trainer.data.shards.stream import Stream, prepared_stream
from trainer.data.stored import StoredSequences
from trainer.data.tokenizer_name import tokenizer_name
from trainer.data.tokens import Tokenizer, Tokens
from trainer.errors import ConfigError, DataError


@dataclass(frozen=True)
class NamedSet:
    """windows: [N, S + 1 + lookahead] int64. bytes_per_token: of their targets."""

    name: str
    windows: Tensor
    bytes_per_token: float


@dataclass(frozen=True)
class _InMemory:
    """A Stream of tokens that are there."""

    tokens: Tokens

    @property
    def size(self) -> int:
        return len(self.tokens)

    def read(self, start: int, end: int) -> Tokens:
        return self.tokens[start:end]


def read_name(text: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH; a path alone is its own name. Raises ConfigError."""
    name, equals, path = text.partition("=")
    if not (name and (path or not equals)):
        raise ConfigError(f"--set {text}: give NAME=PATH")
    return (name, path) if equals else (text, text)


def open_set(
    name: str, path: str, tokenizer: Tokenizer, length: int, lookahead: int, most: int | None
) -> NamedSet:
    """Of prepared text what is held out, of other text all. most: windows; the first of the order
    in which a run with seed 0 reads them, else all. Raises DataError."""
    stream = _stream(name, path, tokenizer)
    sequences = StoredSequences(
        stream, f"--set {name}", seed=0, sequence_length=length, lookahead=lookahead
    )
    count = sequences.sequences_per_epoch
    found = windows(sequences, 0, count if most is None else min(most, count))
    size = bytes_per_token(tokenizer, found, length)
    return NamedSet(name, torch.from_numpy(found.astype("int64")), size)


def _stream(name: str, path: str, tokenizer: Tokenizer) -> Stream:
    folder = Path(path).expanduser()
    if not is_prepared(folder):
        return _InMemory(load_corpus(path, "text", tokenizer).tokens)
    index = read_index(folder)
    if index.tokenizer != tokenizer_name(tokenizer):
        raise DataError(
            f"--set {name}: {folder} was prepared with another tokenizer than the checkpoint's: "
            "prepare it with that"
        )
    return prepared_stream(folder, index, "validation")
