"""Files that are named on a command line: read, written, and tried before a long computation."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from parallel.errors import TandemError
from parallel.schedule.table import ScheduleError

MOST_BYTES = 2**28  # a table or timeline of the most actions has less than half of it


class WriteError(TandemError):
    """A file that could be opened, but not written to its end."""


def read_text(path: Path | str, where: str, most: int = MOST_BYTES) -> str:
    """The text of a file.

    Raises ScheduleError, in one line that starts with `where`, where it cannot be read, is no text
    or has more than `most` bytes.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ScheduleError(f"{where}: {error.strerror}") from None
    if len(content) > most:
        raise ScheduleError(f"{where} has more than {most} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ScheduleError(f"{where} is no text: {error.reason} at byte {error.start}") from None


def require_writable(path: Path | str) -> None:
    """Make the folder of `path`, and raise ScheduleError unless the file can be opened to write.

    What is in the file stays; no file is left that was not there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        # Without waiting, where it is a pipe that nobody reads from.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666))
        if new:
            path.resolve().unlink()
    except OSError as error:
        reason = "no process reads from it" if error.errno == errno.ENXIO else error.strerror
        raise ScheduleError(f"{path} cannot be written: {reason}") from None


def require_outputs(files: Mapping[str, Path], outputs: Collection[str]) -> None:
    """Raise ScheduleError unless each of `outputs` can be written and is no other file too.

    files: those read and those to be written, by the option that names them.
    """
    taken: dict[Path, str] = {}
    for option, path in files.items():
        other = taken.setdefault(path.resolve(), option)
        if option in outputs:
            if other != option:
                raise ScheduleError(f"{other} and {option} are one file: {path}")
            require_writable(path)


def write_file(path: Path | str, content: str | bytes) -> None:
    """Write a file, its folder made if need be; raises WriteError in one line that names it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror}") from None
