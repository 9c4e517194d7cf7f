"""Opening, making and removing files without ever following a link or waiting for a FIFO."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from trainer.errors import RunError

# The errors of open for a link, a folder or a socket in the place of a file.
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of the regular file `path`; flags as os.open has them.

    Raises RunError where `path` is anything else (a link, a second name of another file, a folder,
    a FIFO), OSError where it cannot be opened. What a link leads to is not touched.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # less the umask
    except OSError as error:
        if error.errno in _NO_FILE:
            raise RunError(_no_file_of_ours(path)) from error
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise RunError(_no_file_of_ours(path))
    return handle


def create(path: Path, content: bytes) -> None:
    """Make a new file, and wait until it is on the disk; it is there whole or not at all.

    Raises FileExistsError where anything has that name, even a link to nothing, and other OSErrors.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, but not what a link leads to.

    Does nothing where nothing is there. Raises OSError.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _no_file_of_ours(path: Path) -> str:
    return f"{path}: is a link, a folder or a FIFO where a file of ours belongs: remove it"
