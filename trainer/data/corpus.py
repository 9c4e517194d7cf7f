"""A corpus in memory, and its split into documents to train on and documents held out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.documents import iter_documents
from trainer.data.shuffle import Purpose, permutation
from trainer.data.tokens import Tokenizer, Tokens, token_type
from trainer.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """Documents end to end in one array; both arrays may be memory-maps, they are only read.

    tokens: [tokens] uint16 or uint32; document i is tokens[offsets[i] : offsets[i + 1]], its last
    the end of document. offsets: [documents + 1] int64, from 0, growing, to the number of tokens.
    """

    tokens: Tokens
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        """ValueError if the arrays do not fit each other."""
        if self.tokens.ndim != 1 or self.tokens.dtype not in (np.uint16, np.uint32):
            raise ValueError(f"tokens {self.tokens.shape} {self.tokens.dtype}: not 1-D uint16/32")
        ends = (0, self.tokens.size)
        if self.offsets.dtype != np.int64 or (self.offsets[0], self.offsets[-1]) != ends:
            raise ValueError(f"offsets must be int64 from 0 to {self.tokens.size}")

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return self.offsets.size - 1


@dataclass(frozen=True)
class Split:
    """Some documents of a corpus, by number: `documents` [n] int64, ascending. Copies no token."""

    name: str
    corpus: Corpus
    documents: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document [n], ends of documents included."""
        offsets = self.corpus.offsets
        return offsets[self.documents + 1] - offsets[self.documents]

    @property
    def size(self) -> int:
        """Tokens in the split."""
        return int(self.lengths.sum())

    def blocks(self, block_tokens: int = 1 << 22) -> Iterator[Tokens]:
        """The split's tokens in stored order, in blocks of whole documents with about this many
        tokens."""
        blocks = np.cumsum(self.lengths) // block_tokens
        for members in np.split(self.documents, np.flatnonzero(np.diff(blocks)) + 1):
            offsets = self.corpus.offsets
            pieces = [self.corpus.tokens[offsets[d] : offsets[d + 1]] for d in members]
            yield np.concatenate(pieces)


def load_corpus(path: str | None, text_field: str, tokenizer: Tokenizer) -> Corpus:
    """Read and encode a whole corpus (see iter_documents for `path`, `text_field` and errors)."""
    end = np.array([tokenizer.end_of_document], dtype=token_type(tokenizer.vocabulary_size))
    pieces: list[Tokens] = []
    lengths = [0]
    for encoded in tokenizer.encode_documents(iter_documents(path, text_field)):
        pieces += [encoded, end]
        lengths.append(encoded.size + 1)
    return Corpus(np.concatenate(pieces), np.cumsum(lengths, dtype=np.int64))


def split_corpus(corpus: Corpus, validation_fraction: float, seed: int) -> tuple[Split, Split]:
    """The documents to train on and those held out, chosen by seed, at least one on each side.

    A corpus of one document (a text file) is cut in two there: its last `validation_fraction` is
    held out, so the part to train on has no end of document. Raises DataError for a fraction
    outside (0, 1).
    """
    if not 0 < validation_fraction < 1:
        raise DataError(
            f"data.validation_fraction: {validation_fraction} is not between 0 and 1; "
            "0.05 holds out one document in twenty"
        )
    if corpus.documents == 1:
        size = corpus.tokens.size
        held_out = min(max(round(size * validation_fraction), 1), size - 1)
        corpus = Corpus(corpus.tokens, np.array([0, size - held_out, size], dtype=np.int64))
        chosen = np.array([1])
    else:
        count = min(max(round(corpus.documents * validation_fraction), 1), corpus.documents - 1)
        chosen = permutation(corpus.documents, seed, Purpose.SPLIT)[:count]
    is_held_out = np.zeros(corpus.documents, dtype=bool)  # [documents]
    is_held_out[chosen] = True
    return (
        Split("training", corpus, np.flatnonzero(~is_held_out)),
        Split("validation", corpus, np.flatnonzero(is_held_out)),
    )
