"""Documents of a corpus: which files are read, in which order, and what a document is in each."""

import codecs
import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from trainer.data.files import COMPRESSED, read_chunks
from trainer.data.json_lines import iter_json_lines
from trainer.errors import DataError

# A file with such a name promises text: if it holds none, that is an error; other files are
# skipped.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")
# Installed packages and tests: not the library's own text, and not on every machine.
STDLIB_WITHOUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")


def iter_documents(path: str | None, text_field: str = "text") -> Iterator[bytes]:
    """The documents of a corpus as UTF-8 bytes, in an order that only names decide; none is empty.

    `path` None: the `.py` files of the running interpreter's standard library, without tests.
    A folder: all its text files, by sorted relative path; hidden and binary files are passed over.
    A file is one document, but in `.jsonl` each line is an object with its document in
    `text_field`. Either may end in `.gz` or `.zst`. Raises DataError, in one line with the file
    (and line) at fault, for what is missing, unreadable, not UTF-8, not JSON, or empty.
    """
    if path is None:
        source, documents = "the standard library", _stdlib_documents()
    else:
        source, documents = path, _path_documents(Path(os.path.expanduser(path)), text_field)
    empty = True
    for document in documents:
        if document:
            empty = False
            yield document
    if empty:
        raise DataError(f"data.path: no text in {source}; set data.path to a file or folder of it")


def _stdlib_documents() -> Iterator[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise DataError(
            f"data.path: this Python keeps no source of its standard library at {root}; "
            "set data.path to a text file, a folder or a .jsonl file"
        )
    for file in _files_below(root, STDLIB_WITHOUT):
        if file.suffix == ".py":
            yield _read_text(file)


def _path_documents(path: Path, text_field: str) -> Iterator[bytes]:
    # os.path answers where Path would raise: no permission, a name that is too long.
    if os.path.isfile(path):
        yield from _file_documents(path, text_field)
    elif os.path.isdir(path):
        for file in _files_below(path, ()):
            if _promises_text(file):
                yield from _file_documents(file, text_field)
            elif file.suffix not in COMPRESSED and (text := _text_or_none(file)) is not None:
                yield text
    else:
        what = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
        raise DataError(
            f"data.path: {path} {what}; set data.path to a text file, a folder or a .jsonl file "
            "(null reads the Python standard library)"
        )


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


def _file_documents(file: Path, text_field: str) -> Iterator[bytes]:
    if _kind(file) == ".jsonl":
        yield from iter_json_lines(file, text_field, "data.text_field")
    else:
        yield _read_text(file)


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
