"""Files that are read only if they are regular: a pipe would block, and a device may never end.

error: the class of what is raised, in one line. name: what that line calls the file; its path if
not given.
"""

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


def require_regular(path: Path | str, error: type[TandemError], name: str | None = None) -> int:
    """The size of a file in bytes. Raises `error` for what is missing, out of reach or no regular
    file."""
    name = name or str(path)
    try:
        found = os.stat(path)
    except OSError as reason:
        raise error(f"{name}: cannot be read ({reason.strerror})") from reason
    except ValueError as reason:  # a zero byte in the name
        raise error(f"{name}: cannot be read ({reason})") from reason
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "something else")
        raise error(f"{name}: is {kind}, where a file is needed")
    return found.st_size


def read_regular(
    path: Path | str, most: int, error: type[TandemError], name: str | None = None
) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises as `require_regular` does, and
    for a file that is larger or cannot be read."""
    name = name or str(path)
    require_regular(path, error, name)
    try:
        with open(path, "rb") as handle:
            content = handle.read(most + 1)
    except OSError as reason:
        raise error(f"{name}: cannot be read ({reason.strerror})") from reason
    if len(content) > most:
        raise error(f"{name}: is larger than {most:,} bytes, too large for such a file")
    return content


def read_text(
    path: Path | str, most: int, error: type[TandemError], name: str | None = None
) -> str:
    """The text of such a file. Raises as `read_regular` does, and for what is not UTF-8."""
    try:
        return read_regular(path, most, error, name).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        where = f"{reason.reason} at byte {reason.start}"
        raise error(f"{name or path}: is not text in UTF-8 ({where})") from None
