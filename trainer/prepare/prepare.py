"""From files of text to a folder of shards: one process reads and writes, others encode.

What is written depends on the source and the options alone: documents keep their order, and what is
random of a document follows from its number. So workers may be any number, and an interrupted
preparation goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from parallel.files.outputs import write_file
from trainer.data.shards.index import INDEX_FILE, Index
from trainer.data.shards.writer import ShardWriter, Written
from trainer.data.tokenizer_name import tokenizer_name
from trainer.data.tokens import Tokenizer, token_type
from trainer.errors import DataError
from trainer.prepare.encoder import (
    Encoded,
    EncodeOptions,
    Encoder,
    encode_in_worker,
    start_worker,
)
from trainer.prepare.left_out import LeftOut
from trainer.prepare.lengths import token_lengths
from trainer.prepare.progress_file import PROGRESS_FILE, Prepared, load_progress, save_progress
from trainer.prepare.source import Chunk, Skipped, Source
from trainer.prepare.workers import Workers

_SAVE_EVERY = 10.0  # seconds
Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Preparation:
    """workers: processes that encode; 0 encodes in this one. shard_tokens: of a shard, about."""

    source: Source
    encode: EncodeOptions
    workers: int
    shard_tokens: int
    skip_bad: bool
    left_out: LeftOut = field(default_factory=LeftOut)

    def what(self, tokenizer: Tokenizer) -> str:
        """Of what is written: the same for the same tokens in the same shards."""
        parts = [self.source.fingerprint(), tokenizer_name(tokenizer), self.shard_tokens]
        options = {**asdict(self.encode), "tokenizer": None, "skip_bad": self.skip_bad}
        options["left_out"] = self.left_out.fingerprint
        return hashlib.sha256(json.dumps([parts, options]).encode()).hexdigest()


@dataclass(frozen=True)
class Done:
    """bytes: of text. seconds: of this start."""

    index: Index
    bytes: int
    seconds: float
    skipped: Skipped


def prepare(preparation: Preparation, folder: Path, show: Show) -> Done:
    """Write the shards, from where `folder` has some of them, and their index. show(done, total):
    bytes of files.

    Raises DataError, in one line, for a document or a tokenizer that cannot be read, for too little
    text to hold some out, and where a worker is killed; OSError or WriteError where the disk is
    full. What has been written stays, to go on from.
    """
    start, encoder = time.perf_counter(), Encoder(preparation.encode)
    folder.mkdir(parents=True, exist_ok=True)
    done = load_progress(folder, preparation.what(encoder.tokenizer))
    kind = _type_name(encoder.tokenizer)
    writers = {
        split: ShardWriter(folder, split, kind, preparation.shard_tokens, written)
        for split, written in done.written.items()
    }
    try:
        done = _encode_all(preparation, folder, encoder, writers, done, show)
    finally:
        for writer in writers.values():
            writer.close()
    index = _index(preparation, folder, encoder.tokenizer, writers, done)
    write_file(folder / INDEX_FILE, index.as_json())
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return Done(index, done.bytes, time.perf_counter() - start, done.skipped)


def _encode_all(
    preparation: Preparation,
    folder: Path,
    encoder: Encoder,
    writers: dict[str, ShardWriter],
    done: Prepared,
    show: Show,
) -> Prepared:
    total, saved = preparation.source.bytes, time.monotonic()
    skipped = done.skipped if preparation.skip_bad else None
    chunks = preparation.source.chunks(done.place, skipped, preparation.left_out.numbers)
    for chunk, encoded in _encoded(preparation, encoder, chunks):
        _write(writers, encoded)
        size = done.bytes + sum(map(len, chunk.documents))
        done = replace(done, place=chunk.end, bytes=size, skipped=chunk.skipped)
        show(chunk.done, total)
        if time.monotonic() - saved > _SAVE_EVERY:
            done = _saved(folder, writers, done)
            saved = time.monotonic()
    if skipped is not None:
        done = replace(done, skipped=skipped)  # those behind the last document, too
    return _saved(folder, writers, done)


def _write(writers: dict[str, ShardWriter], encoded: Encoded) -> None:
    if not encoded.held_out.any():
        writers["training"].append(encoded.tokens, encoded.lengths)
        return
    of_token = encoded.held_out.repeat(encoded.lengths)
    for split, kept in (("training", False), ("validation", True)):
        lengths = encoded.lengths[encoded.held_out == kept]
        writers[split].append(encoded.tokens[of_token == kept], lengths)


def _saved(folder: Path, writers: dict[str, ShardWriter], done: Prepared) -> Prepared:
    for writer in writers.values():
        writer.flush()
    written = {split: writer.written for split, writer in writers.items()}
    done = replace(done, written={k: Written(**vars(w)) for k, w in written.items()})
    save_progress(folder, done)
    return done


def _encoded(
    preparation: Preparation, encoder: Encoder, chunks: Iterator[Chunk]
) -> Iterator[tuple[Chunk, Encoded]]:
    """Each chunk with its tokens, in order."""
    options = preparation.encode
    start, work = partial(start_worker, options), partial(encode_in_worker, options)
    return Workers(preparation.workers, start, work, encoder.encode).results(chunks)


def _index(
    preparation: Preparation,
    folder: Path,
    tokenizer: Tokenizer,
    writers: dict[str, ShardWriter],
    done: Prepared,
) -> Index:
    splits = {split: list(writer.finish()) for split, writer in writers.items()}
    share = preparation.encode.validation
    if not splits["training"]:
        raise DataError("there is no text to train on: give files or folders with text")
    if share and not splits["validation"]:
        raise DataError(
            f"--validation-fraction {share:g} of {done.place.number:,} documents has held out "
            "none: set a larger one, or 0 to hold out nothing"
        )
    options = {k: v for k, v in asdict(preparation.encode).items() if k != "tokenizer"}
    about = {
        "bytes": done.bytes, "skipped": done.skipped.count, **options,
        "tokens_of_documents": token_lengths(folder, splits), **preparation.left_out.about,
    }  # fmt: skip
    return Index(
        _type_name(tokenizer), tokenizer.vocabulary_size, tokenizer.end_of_document,
        tokenizer_name(tokenizer), splits, about,
    )  # fmt: skip


def _type_name(tokenizer: Tokenizer) -> str:
    return np.dtype(token_type(tokenizer.vocabulary_size)).name
