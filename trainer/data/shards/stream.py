"""The tokens of files, end to end, as one stream that is mapped into memory and never read whole.

Processes of a node share what they have read: it is the kernel's page cache.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.shards.index import Index
from trainer.data.tokens import Tokens
from trainer.errors import DataError


@dataclass(frozen=True)
class Mapped:
    """Some tokens of a file. start: in bytes."""

    path: Path
    tokens: int
    start: int = 0


class Stream(Protocol):
    """Tokens in one order."""

    @property
    def size(self) -> int:
        """How many."""

    def read(self, start: int, end: int) -> Tokens:
        """Tokens start .. end - 1, [end - start]."""


class TokenStream:
    """The tokens of `parts`, one after the other. Files are opened when they are first read."""

    def __init__(self, parts: Sequence[Mapped], token_type: np.dtype[np.unsignedinteger]) -> None:
        self._parts, self._type = [part for part in parts if part.tokens], token_type
        self._starts = np.concatenate(
            ([0], np.cumsum([part.tokens for part in self._parts], dtype=np.int64))
        )
        self._open: dict[int, NDArray[np.unsignedinteger]] = {}

    @property
    def size(self) -> int:
        """How many tokens."""
        return int(self._starts[-1])

    def read(self, start: int, end: int) -> Tokens:
        """Tokens start .. end - 1, [end - start]. Raises DataError."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces, at = [], start
        for number in range(first, len(self._parts)):
            base, stop = int(self._starts[number]), min(end, int(self._starts[number + 1]))
            pieces.append(self._map(number)[at - base : stop - base])
            at = stop
            if at >= end:
                break
        return np.array(pieces[0]) if len(pieces) == 1 else np.concatenate(pieces)

    def _map(self, number: int) -> NDArray[np.unsignedinteger]:
        found = self._open.get(number)
        if found is None:
            part = self._parts[number]
            try:
                found = np.memmap(part.path, self._type, "r", part.start, (part.tokens,))
                # Windows come from anywhere: what the kernel would read ahead is not wanted.
                found._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
            except (OSError, ValueError) as error:
                raise DataError(f"{part.path}: cannot be read ({error})") from error
            self._open[number] = found
        return found


def prepared_stream(folder: Path, index: Index, split: str) -> TokenStream:
    """A split of a folder of prepared text."""
    parts = [Mapped(folder / f"{shard.name}.tokens", shard.tokens) for shard in index.splits[split]]
    return TokenStream(parts, np.dtype(index.token_type).newbyteorder("<"))
