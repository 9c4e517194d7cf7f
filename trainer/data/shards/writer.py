"""Writes the shards of a split, document after document, so that it can go on where it stopped."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.data.shards.index import Shard
from trainer.data.tokens import Tokens


@dataclass
class Written:
    """What is in the files: whole shards, and of the last one, so far."""

    whole: list[Shard] = field(default_factory=list)
    tokens: int = 0
    documents: int = 0
    checksum: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Written:
        whole = [Shard(**shard) for shard in said["whole"]]
        return cls(whole, said["tokens"], said["documents"], said["checksum"])


class ShardWriter:
    """Of the split `split` in `folder`. A shard ends with the document that fills it: no document
    is in two."""

    def __init__(
        self, folder: Path, split: str, token_type: str, most_tokens: int, written: Written
    ) -> None:
        """most_tokens: of a shard, but for its last document. written: what is there already; what
        lies behind that is cut off. Raises OSError."""
        self._folder, self._split, self._most = folder, split, most_tokens
        self._type = np.dtype(token_type).newbyteorder("<")
        self.written = written
        self._files: tuple[BinaryIO, BinaryIO] | None = None

    def append(self, tokens: Tokens, lengths: NDArray[np.int64]) -> None:
        """Documents end to end, of so many tokens each, their ends among them."""
        start = 0
        while len(lengths):
            room = max(self._most - self.written.tokens, 0)
            ends = np.cumsum(lengths)
            count = min(int(np.searchsorted(ends, room)) + 1, len(lengths))
            size = int(ends[count - 1])
            self._write(tokens[start : start + size], ends[:count])
            start, lengths = start + size, lengths[count:]
            if self.written.tokens >= self._most:
                self._end_shard()

    def flush(self) -> None:
        """Until all that is `written` is on disk."""
        for file in self._files or ():
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> Sequence[Shard]:
        """All shards."""
        if self.written.documents:
            self._end_shard()
        return self.written.whole

    def _write(self, tokens: Tokens, ends: NDArray[np.int64]) -> None:
        written = self.written
        tokens_file, ends_file = self._files = self._files or self._open()
        content = np.ascontiguousarray(tokens, dtype=self._type).tobytes()
        tokens_file.write(content)
        ends_file.write((ends + written.tokens).astype("<i8").tobytes())
        written.tokens += len(tokens)
        written.documents += len(ends)
        written.checksum = zlib.crc32(content, written.checksum)

    def _end_shard(self) -> None:
        self.flush()
        self.close()
        w = self.written
        shard = Shard(self._name, w.tokens, w.documents, w.checksum)
        self.written = Written([*w.whole, shard])

    def close(self) -> None:
        for file in self._files or ():
            file.close()
        self._files = None

    @property
    def _name(self) -> str:
        return f"{self._split}-{len(self.written.whole):05d}"

    def _open(self) -> tuple[BinaryIO, BinaryIO]:
        w = self.written
        sizes = {"tokens": w.tokens * self._type.itemsize, "ends": w.documents * 8}
        tokens, ends = (
            _open_at(self._folder / f"{self._name}.{ending}", size)
            for ending, size in sizes.items()
        )
        return tokens, ends


def _open_at(path: Path, size: int) -> BinaryIO:
    """A file whose first `size` bytes stay, to write on after them."""
    file = open(path, "r+b" if size else "wb")  # noqa: SIM115 (the writer closes it)
    file.truncate(size)
    file.seek(size)
    return file
