"""Output files named by the user: tried before a long computation, then written."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from parallel.errors import TandemError


class OutputError(TandemError):
    """A file that cannot be written, known before anything was computed."""

    exit_code = 2


class WriteError(TandemError):
    """A file that could be opened, but not written completely."""


def require_outputs(files: Mapping[str, Path], outputs: Collection[str]) -> None:
    """Raise OutputError unless each of `outputs` can be written and differs from all other files.

    files: those read and those to be written, by the option that names them. Missing folders are
    made; a file keeps its content, and no new file is left.
    """
    taken: dict[Path, str] = {}
    for option, path in files.items():
        other = taken.setdefault(path.resolve(), option)
        if option in outputs:
            if other != option:
                raise OutputError(f"{other} and {option} are the same file: {path}")
            _require_writable(option, path)


def write_file(path: Path | str, content: str | bytes) -> None:
    """Write a file, making its folder if necessary, in place of an older one or a link to one.

    Raises WriteError in one line that names it; the older file is then as it was.
    """
    path = Path(path)
    written = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_bytes(written)
            return
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(written)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror}") from None


def _require_writable(option: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        # Without waiting, where it is a pipe that nobody reads from.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666))
        if new:
            path.resolve().unlink(missing_ok=True)  # another rank may have tried it too
    except OSError as error:
        reason = "no process reads from it" if error.errno == errno.ENXIO else error.strerror
        raise OutputError(f"{option} {path} cannot be written: {reason}") from None
