"""Files to be written whose names a person gave: tried before a long computation, then written."""

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
    """A file that could be opened, but not written to its end."""


def require_outputs(files: Mapping[str, Path], outputs: Collection[str]) -> None:
    """Raise OutputError unless each of `outputs` can be written and is no other file too.

    files: those read and those to be written, by the option that names them. Folders are made; what
    is in a file stays; no file is left that was not there.
    """
    taken: dict[Path, str] = {}
    for option, path in files.items():
        other = taken.setdefault(path.resolve(), option)
        if option in outputs:
            if other != option:
                raise OutputError(f"{other} and {option} are one file: {path}")
            _require_writable(option, path)


def write_file(path: Path | str, content: str | bytes) -> None:
    """Write a file, its folder made if need be; raises WriteError in one line that names it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
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
