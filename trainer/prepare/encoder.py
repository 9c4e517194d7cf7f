"""From documents to tokens, in a worker process: a function of the documents and their numbers."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.bijection import hashed
from trainer.data.file_tokenizer import load_tokenizer
from trainer.data.tokens import Tokenizer, Tokens, token_type
from trainer.prepare.fill_in_middle import FillInMiddle
from trainer.prepare.joined_tokens import JoinedTokens

_VALIDATION, _MIDDLE, _JOINED = 1, 2, 3  # what a document's random numbers are for


@dataclass(frozen=True)
class EncodeOptions:
    """tokenizer: path, or None for bytes. validation: share of documents that is held out.
    fill_in_middle, split_joined: shares, as FillInMiddle and JoinedTokens take them."""

    tokenizer: str | None
    seed: int = 0
    validation: float = 0.0
    fill_in_middle: float = 0.0
    split_joined: float = 0.0


@dataclass(frozen=True)
class Encoded:
    """Documents end to end, each with its end. lengths: of each, [n] int64. held_out: [n] bool."""

    tokens: Tokens
    lengths: NDArray[np.int64]
    held_out: NDArray[np.bool_]


class Encoder:
    """Raises DataError where the tokenizer cannot be loaded, or lacks what the options need."""

    def __init__(self, options: EncodeOptions) -> None:
        self.options = options
        self.tokenizer: Tokenizer = load_tokenizer(options.tokenizer)
        self._type = token_type(self.tokenizer.vocabulary_size)
        self._end = np.array([self.tokenizer.end_of_document], dtype=self._type)
        self._middle = self._joined = None
        if options.fill_in_middle:
            self._middle = FillInMiddle(self.tokenizer, options.fill_in_middle)
        if options.split_joined:
            self._joined = JoinedTokens(self.tokenizer, options.split_joined)

    def encode(self, numbers: Sequence[int], documents: Sequence[bytes]) -> Encoded:
        """The documents that have these numbers among all; at least one. Raises DataError."""
        held_out = np.array([self._is_held_out(number) for number in numbers], dtype=np.bool_)
        parts: list[list[bytes]] = [[text] for text in documents]
        if self._middle is not None:
            for place, number in enumerate(numbers):
                if not held_out[place]:
                    random = self._random(number, _MIDDLE)
                    parts[place] = self._middle.parts(documents[place], random)
        flat = [part for document in parts for part in document]
        tokens = iter(self.tokenizer.encode_documents(flat))
        pieces: list[Tokens] = []
        lengths = np.empty(len(documents), dtype=np.int64)
        for place, number in enumerate(numbers):
            encoded = [next(tokens) for _ in parts[place]]
            if self._joined is not None and not held_out[place]:
                random = self._random(number, _JOINED)
                encoded = [self._joined.split(part, random) for part in encoded]
            if len(encoded) > 1:
                assert self._middle is not None
                encoded = self._middle.joined(encoded)
            pieces += [*encoded, self._end]
            lengths[place] = sum(map(len, encoded)) + 1
        return Encoded(np.concatenate(pieces).astype(self._type, copy=False), lengths, held_out)

    def _is_held_out(self, number: int) -> bool:
        return hashed(self.options.seed, number, _VALIDATION) < self.options.validation * 2.0**64

    def _random(self, number: int, purpose: int) -> np.random.RandomState:
        """The document's own: whoever encodes it, and whenever."""
        words = hashed(self.options.seed, number, purpose)
        return np.random.RandomState([words & 0xFFFFFFFF, words >> 32])


def start_worker(options: EncodeOptions) -> None:
    """In a new process, before `encode_in_worker`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes take the cores
    _encoder_of(options)


def encode_in_worker(
    options: EncodeOptions, numbers: Sequence[int], documents: Sequence[bytes]
) -> Encoded:
    """As Encoder.encode."""
    return _encoder_of(options).encode(numbers, documents)


@functools.cache
def _encoder_of(options: EncodeOptions) -> Encoder:
    """Once per process: a vocabulary takes a while to load."""
    return Encoder(options)
