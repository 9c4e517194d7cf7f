"""One source of a run's text, whatever it is kept in: what to train on, and what is held out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.corpus import Split, load_corpus, split_corpus
from trainer.data.corpus_sequences import CorpusSequences
from trainer.data.megatron import is_megatron, open_megatron
from trainer.data.sequences import Sequences, windows
from trainer.data.shards.index import is_prepared, read_index
from trainer.data.shards.stream import TokenStream, prepared_stream
from trainer.data.stored import StoredSequences
from trainer.data.tokenizer_name import tokenizer_name
from trainer.data.tokens import Tokenizer
from trainer.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How text is read. lookahead: MTP depth, in tokens. held_out: sequences of an evaluation, at
    most. text_field, validation_fraction: for text that is not prepared."""

    seed: int
    sequence_length: int
    lookahead: int
    held_out: int
    text_field: str
    validation_fraction: float


@dataclass(frozen=True)
class TextSource:
    """name: "" where it is the only one. held_out: the same windows at every evaluation, [N, S + 1
    + lookahead] int64. sizes: for a person. fingerprint: the same for the same text. split: of a
    corpus in memory."""

    name: str
    training: Sequences
    held_out: Tensor
    sizes: str
    fingerprint: int
    split: Split | None = None


def open_source(name: str, path: str | None, how: Reading, tokenizer: Tokenizer) -> TextSource:
    """Prepared text, Megatron's, or text files (docs/data.md). Raises DataError, in one line."""
    if path is not None:
        place = Path(path).expanduser()
        if is_prepared(place):
            return _prepared(name, place, how, tokenizer)
        if is_megatron(place):
            training, validation, fingerprint = open_megatron(place, how.validation_fraction)
            return _stored(name, place, (training, validation), how, fingerprint, "")
    return _in_memory(name, path, how, tokenizer)


def _prepared(name: str, folder: Path, how: Reading, tokenizer: Tokenizer) -> TextSource:
    index = read_index(folder)
    if index.tokenizer != tokenizer_name(tokenizer):
        raise DataError(
            f"data: {folder} was prepared with another tokenizer: set data.tokenizer to "
            f"{folder}/tokenizer, or prepare the text again with that of this run"
        )
    streams = (prepared_stream(folder, index, split) for split in ("training", "validation"))
    documents = index.documents("training")
    return _stored(
        name, folder, tuple(streams), how, index.fingerprint(), f" in {documents:,} documents"
    )


def _stored(
    name: str,
    place: Path,
    streams: tuple[TokenStream, ...],
    how: Reading,
    fingerprint: int,
    documents: str,
) -> TextSource:
    training, validation = (
        StoredSequences(
            stream, f"the {split} tokens of {place}", seed=how.seed,
            sequence_length=how.sequence_length, lookahead=how.lookahead,
        )
        for stream, split in zip(streams, ("training", "validation"))
    )  # fmt: skip
    sizes = f"{streams[0].size:,} tokens to train on{documents}, {streams[1].size:,} held out"
    return TextSource(
        name, training, _held_out(validation, validation.sequences_per_epoch, how), sizes,
        fingerprint,
    )  # fmt: skip


def _in_memory(name: str, path: str | None, how: Reading, tokenizer: Tokenizer) -> TextSource:
    corpus = load_corpus(path, how.text_field, tokenizer)
    splits = split_corpus(corpus, how.validation_fraction, how.seed)
    training, validation = (
        CorpusSequences(
            split, seed=how.seed, sequence_length=how.sequence_length, lookahead=how.lookahead
        )
        for split in splits
    )
    of_training, of_validation = splits
    sizes = (
        f"{of_training.size:,} {tokenizer.unit} to train on in {of_training.documents.size:,} "
        f"documents, {of_validation.size:,} held out in {of_validation.documents.size:,}"
    )
    held_out = _held_out(validation, validation.sequences_per_epoch, how)
    return TextSource(
        name, training, held_out, sizes, zlib.crc32(corpus.tokens.tobytes()), of_training
    )


def _held_out(validation: Sequences, there: int, how: Reading) -> Tensor:
    """The first of its first epoch: shuffled, so that few still speak for many documents."""
    found = windows(validation, 0, min(how.held_out, there))
    return torch.from_numpy(found.astype("int64"))
