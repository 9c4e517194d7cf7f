"""What is prepared: documents of files and folders, in chunks, from any place among them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from trainer.data.bad import Bad, stop
from trainer.data.documents import SourceFile, file_documents, source_files
from trainer.errors import DataError

CHUNK_BYTES = 1 << 22
_SHOWN = 20


@dataclass(frozen=True)
class Place:
    """Where reading goes on: behind so many documents of file number `file`. number: documents
    before it, in all files."""

    file: int = 0
    documents: int = 0
    number: int = 0


@dataclass(frozen=True)
class Chunk:
    """Documents in their order. numbers: of each, among all. where: of each, the number of its file
    and its line there, 0 where the file is the document. end: the place behind them. done: bytes of
    files, as they are on disk, up to there. skipped: before there."""

    numbers: list[int]
    documents: list[bytes]
    where: list[tuple[int, int]]
    end: Place
    done: int
    skipped: Skipped


@dataclass
class Skipped:
    """Documents that could not be read: how many, and of the first what was wrong."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def note(self, problem: DataError) -> None:
        """A Bad that lets reading go on."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(str(problem))


class Source:
    """The files of some paths, in their order; a path of None is the standard library's."""

    def __init__(self, paths: Sequence[str | None], text_field: str) -> None:
        """Raises DataError for a path that is not there."""
        self.text_field = text_field
        self.files: list[SourceFile] = [file for path in paths for file in source_files(path)]
        self.sizes = [_size(file) for file in self.files]

    @property
    def bytes(self) -> int:
        """Of the files, on disk."""
        return sum(self.sizes)

    def fingerprint(self) -> str:
        """The same for the same files, by names, sizes and times."""
        found = hashlib.sha256(self.text_field.encode())
        for file, size in zip(self.files, self.sizes):
            found.update(f"{file.path}\0{size}\0{_changed(file)}\0".encode())
        return found.hexdigest()

    def chunks(
        self, start: Place, skipped: Skipped | None, left_out: AbstractSet[int] = frozenset()
    ) -> Iterator[Chunk]:
        """The documents behind a place, but those with numbers in `left_out`. skipped: is told of
        those that cannot be read; where None, the first of them raises DataError."""
        told = _Told(stop if skipped is None else skipped.note)
        part = _Part()
        total, done = start.number, sum(self.sizes[: start.file])
        for file in range(start.file, len(self.files)):
            before = start.documents if file == start.file else 0
            # What was skipped before `start` has been counted then.
            told.silent = before > 0
            found = file_documents(self.files[file], self.text_field, told)
            read = 0
            for count, document in enumerate(found, start=1):
                if count <= before:
                    told.silent = count < before
                    continue
                if total not in left_out:
                    part.add(total, document.text, (file, document.line))
                total += 1
                read += len(document.text)
                if part.size >= CHUNK_BYTES:
                    so_far = done + min(read, self.sizes[file])
                    yield part.chunk(Place(file, count, total), so_far, skipped)
                    part = _Part()
            done += self.sizes[file]
        if part.documents:
            yield part.chunk(Place(len(self.files), 0, total), done, skipped)


@dataclass
class _Part:
    """A chunk that grows. size: of its documents, in bytes."""

    numbers: list[int] = field(default_factory=list)
    documents: list[bytes] = field(default_factory=list)
    where: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0

    def add(self, number: int, text: bytes, where: tuple[int, int]) -> None:
        self.numbers.append(number)
        self.documents.append(text)
        self.where.append(where)
        self.size += len(text)

    def chunk(self, end: Place, done: int, skipped: Skipped | None) -> Chunk:
        return Chunk(self.numbers, self.documents, self.where, end, done, _copy(skipped))


@dataclass
class _Told:
    """A Bad that is silent for a while."""

    bad: Bad
    silent: bool = False

    def __call__(self, problem: DataError) -> None:
        if not self.silent:
            self.bad(problem)


def _copy(skipped: Skipped | None) -> Skipped:
    return Skipped() if skipped is None else Skipped(skipped.count, list(skipped.shown))


def _size(file: SourceFile) -> int:
    try:
        return os.stat(file.path).st_size
    except OSError:  # reading it will say so
        return 0


def _changed(file: SourceFile) -> int:
    try:
        return os.stat(file.path).st_mtime_ns
    except OSError:
        return 0
