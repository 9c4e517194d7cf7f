"""What is prepared: documents of files and folders, in chunks, from any place among them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
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
    """Documents in their order; the first has the number `first` among all. end: the place behind
    them. done: bytes of files, as they are on disk, up to there. skipped: before there."""

    first: int
    documents: list[bytes]
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

    def chunks(self, start: Place, skipped: Skipped | None) -> Iterator[Chunk]:
        """The documents behind a place. skipped: is told of those that cannot be read; where None,
        the first of them raises DataError."""
        told = _Told(stop if skipped is None else skipped.note)
        documents: list[bytes] = []
        size, first = 0, start.number
        done = sum(self.sizes[: start.file])
        for number in range(start.file, len(self.files)):
            before = start.documents if number == start.file else 0
            # What was skipped before `start` has been counted then.
            told.silent = before > 0
            found = file_documents(self.files[number], self.text_field, told)
            read = 0
            for count, document in enumerate(found, start=1):
                if count <= before:
                    told.silent = count < before
                    continue
                documents.append(document.text)
                size += len(document.text)
                read += len(document.text)
                if size >= CHUNK_BYTES:
                    end = Place(number, count, first + len(documents))
                    so_far = done + min(read, self.sizes[number])
                    yield Chunk(first, documents, end, so_far, _copy(skipped))
                    first, documents, size = end.number, [], 0
            done += self.sizes[number]
        if documents:
            end = Place(len(self.files), 0, first + len(documents))
            yield Chunk(first, documents, end, done, _copy(skipped))


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
