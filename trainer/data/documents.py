"""Documents of a corpus: which files are read, in which order, and what a document is in each."""

import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from trainer.data.files import COMPRESSED, read_chunks, read_lines
from trainer.errors import DataError

# A file named so promises text: that it holds none is an error, where other files are passed over.
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
        source, documents = path, _path_documents(Path(path).expanduser(), text_field)
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
    if path.is_file():
        yield from _file_documents(path, text_field)
    elif path.is_dir():
        for file in _files_below(path, ()):
            if _promises_text(file):
                yield from _file_documents(file, text_field)
            elif file.suffix not in COMPRESSED and (text := _text_or_none(file)) is not None:
                yield text
    else:
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
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
    files = [file for file in found if file.is_file() or not file.exists()]
    return sorted(files, key=lambda file: file.relative_to(root).parts)


def _kind(file: Path) -> str:
    """The suffix below any compression: `.jsonl` for `part.jsonl.zst`."""
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def _promises_text(file: Path) -> bool:
    return _kind(file) in TEXT_SUFFIXES


def _file_documents(file: Path, text_field: str) -> Iterator[bytes]:
    if _kind(file) == ".jsonl":
        for number, line in enumerate(read_lines(file), start=1):
            if line.strip():
                yield _line_document(line, f"{file}, line {number}", text_field)
    else:
        yield _read_text(file)


def _read_text(file: Path) -> bytes:
    content = b"".join(read_chunks(file))
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 text (byte {error.start} of its content); "
            "convert the file to UTF-8 or leave it out of data.path"
        ) from error
    return content


def _text_or_none(file: Path) -> bytes | None:
    content = b"".join(read_chunks(file))
    try:
        content.decode()
    except UnicodeDecodeError:
        return None
    # Binary files of small numbers decode, but text has no zero bytes.
    return None if b"\0" in content else content


def _line_document(line: bytes, place: str, text_field: str) -> bytes:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: JSON that cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{place}: a JSON {type(record).__name__}, where an object with the field "
            f"{text_field!r} is needed (data.text_field)"
        )
    if text_field not in record:
        others = ", ".join(repr(name) for name in record) or "none"
        raise DataError(
            f"{place}: no field {text_field!r}; set data.text_field to the field with the text "
            f"(fields of the line: {others})"
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{place}: field {text_field!r} holds {type(text).__name__}, not a string; "
            "set data.text_field to the field with the text"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: field {text_field!r} has half of a surrogate pair (character {error.start})"
        ) from error
