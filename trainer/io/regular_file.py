"""Files that are read only if they are regular: a pipe would block, and a device may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from parallel.errors import TandemError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def require_regular(path: Path, error: type[TandemError]) -> int:
    """The size of a file in bytes. Raises `error`, in one line, for what is missing, out of reach
    or no regular file."""
    try:
        found = os.stat(path)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from reason
    except ValueError as reason:  # a zero byte in the name
        raise error(f"{path}: cannot be read ({reason})") from reason
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise error(f"{path}: is {kind}, where a file is needed")
    return found.st_size


def read_regular(path: Path, most: int, error: type[TandemError]) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises as `require_regular` does, and
    for a file that is larger or cannot be read."""
    require_regular(path, error)
    try:
        with open(path, "rb") as handle:
            content = handle.read(most + 1)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from reason
    if len(content) > most:
        raise error(f"{path}: is larger than {most:,} bytes, which no such file should be")
    return content
