"""Documents of a corpus: which files are read, in which order, and what a document is in each."""

import codecs
import importlib.util
import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.data.bad import Bad, stop
from trainer.data.files import COMPRESSED, read_chunks
from trainer.data.json_lines import iter_json_lines
from trainer.data.parquet import iter_parquet
from trainer.errors import DataError

# A file with such a name promises text: if it holds none, that is an error; other files are
# skipped.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
# Installed packages and tests: not the library's own text, and not on every machine.
PACKAGE = "package:"
STDLIB_WITHOUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")


class Document(NamedTuple):
    """text: UTF-8. file, line: where it comes from; line 0 where the file is one document."""

    text: bytes
    file: Path
    line: int


class SourceFile(NamedTuple):
    """certain: whether its name promises text; what is not text elsewhere is passed over."""

    path: Path
    certain: bool


def iter_documents(path: str | None, text_field: str = "text") -> Iterator[bytes]:
    """The documents of a corpus as UTF-8 bytes, in an order that only names decide; none is empty.

    `path` None: the `.py` files of the running interpreter's standard library, without tests;
    `package:NAME`: those of an installed package.
    A folder: all its text files, by sorted relative path; hidden and binary files are passed over.
    A file is one document, but in `.jsonl` each line is an object with its document in
    `text_field`, and in `.parquet` each row has one in such a column. All but the last may end in
    `.gz` or `.zst`. Raises DataError, in one line with the file (and line) at fault, for what is
    missing, unreadable, not UTF-8, not JSON, or empty.
    """
    empty = True
    for file in source_files(path):
        for document in file_documents(file, text_field, stop):
            empty = False
            yield document.text
    if empty:
        source = "the standard library" if path is None else path
        raise DataError(f"data.path: no text in {source}; set data.path to a file or folder of it")


def source_files(path: str | None) -> list[SourceFile]:
    """The files that may have documents, in the order in which they are read. Raises DataError."""
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        if not root.is_dir():
            raise DataError(
                f"data.path: this Python keeps no source of its standard library at {root}; "
                "set data.path to a text file, a folder or a .jsonl file"
            )
        return _python_files(root)
    if path.startswith(PACKAGE):
        return _python_files(_package(path.removeprefix(PACKAGE)))
    place = Path(os.path.expanduser(path))
    # os.path answers where Path would raise: no permission, a name that is too long.
    if os.path.isfile(place):
        return [SourceFile(place, True)]
    if os.path.isdir(place):
        found = _files_below(place, ())
        return [SourceFile(file, _promises_text(file)) for file in found if _may_be_text(file)]
    what = "is neither a file nor a folder" if os.path.exists(place) else "does not exist"
    raise DataError(
        f"data.path: {place} {what}; set data.path to a text file, a folder or a .jsonl file "
        "(null reads the Python standard library)"
    )


def _python_files(root: Path) -> list[SourceFile]:
    files = _files_below(root, STDLIB_WITHOUT)
    return [SourceFile(file, True) for file in files if file.suffix == ".py"]


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    places = found.submodule_search_locations if found is not None else None
    if not places:
        raise DataError(f"data.path: {PACKAGE}{name}: no package of this name is installed here")
    return Path(next(iter(places)))


def file_documents(file: SourceFile, text_field: str, bad: Bad) -> Iterator[Document]:
    """The documents of one file that are not empty. bad: is told of each that cannot be read; where
    it returns, reading goes on with the next."""
    path, kind = file.path, _kind(file.path)
    if kind == ".jsonl":
        texts = iter_json_lines(path, text_field, "data.text_field", bad)
    elif kind == ".parquet":
        texts = iter_parquet(path, text_field, bad)
    else:
        texts = _whole_file(file, bad)
    for line, text in texts:
        if text:
            yield Document(text, path, line)


def _whole_file(file: SourceFile, bad: Bad) -> Iterator[tuple[int, bytes]]:
    if not file.certain:
        text = _text_or_none(file.path)
        if text is not None:
            yield 0, text
        return
    try:
        text = _read_text(file.path)
    except DataError as problem:
        bad(problem)
        return
    yield 0, text


def _files_below(root: Path, without: tuple[str, ...]) -> list[Path]:
    """All files that are not hidden, by relative path, with no folder named in `without`."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error

    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in without and name[0] != "."]
        found += [Path(folder, name) for name in names if name[0] != "."]
    # A broken link stays in, so that reading it says so; sockets and pipes would block.
    files = [file for file in found if os.path.isfile(file) or not os.path.exists(file)]
    return sorted(files, key=lambda file: file.relative_to(root).parts)


def _kind(file: Path) -> str:
    """The suffix below any compression: `.jsonl` for `part.jsonl.zst`."""
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def _promises_text(file: Path) -> bool:
    return _kind(file) in TEXT_SUFFIXES


def _may_be_text(file: Path) -> bool:
    """Of files whose name promises nothing, compressed ones are left alone."""
    return _promises_text(file) or file.suffix not in COMPRESSED


def _read_text(file: Path) -> bytes:
    try:
        return b"".join(_utf8_chunks(file))
    except _NotUTF8 as error:
        raise DataError(
            f"{file}: not UTF-8 text (byte {error.start} of its content); "
            "convert the file to UTF-8 or leave it out of data.path"
        ) from error


def _text_or_none(file: Path) -> bytes | None:
    """None for a binary file, which is read only until that is clear."""
    chunks: list[bytes] = []
    try:
        for chunk in _utf8_chunks(file):
            if b"\0" in chunk:  # small numbers decode, but text has no zero bytes
                return None
            chunks.append(chunk)
    except _NotUTF8:
        return None
    return b"".join(chunks)


class _NotUTF8(Exception):
    """start: the byte of the content at which UTF-8 ends."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


def _utf8_chunks(file: Path) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    total = 0
    pieces = ((chunk, False) for chunk in read_chunks(file))
    for chunk, last in itertools.chain(pieces, [(b"", True)]):
        held = len(decoder.getstate()[0])  # the start of a character, from the chunk before
        try:
            decoder.decode(chunk, last)
        except UnicodeDecodeError as error:
            raise _NotUTF8(total - held + error.start) from error
        total += len(chunk)
        yield chunk
