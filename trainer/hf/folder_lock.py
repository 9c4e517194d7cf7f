"""The lock of a folder that is being written: a file that the kernel unlocks when its holder ends.

The file says who holds it, so that what began in this process is known from its path alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from trainer.hf.errors import CheckpointError


def lock(path: Path, folder: Path) -> None:
    """Make the lock file of `folder`, and its parents, and hold it until `release`.

    Raises CheckpointError where it is held already, also by this process; OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_open_as(handle, path):  # its last holder removed it meanwhile
            raise BlockingIOError(errno.EWOULDBLOCK, "removed")
        os.ftruncate(handle, 0)
        os.write(handle, f"{handle} {os.getpid()} {socket.gethostname()}\n".encode())
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise CheckpointError(
                f"{folder}: is being written by {_holder(path)}: wait for it, or choose another "
                "folder"
            ) from error
        raise


def held(path: Path) -> int | None:
    """The descriptor by which this process holds the lock; None if it does not."""
    try:
        handle = int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return handle if _is_open_as(handle, path) else None


def release(path: Path, handle: int) -> None:
    """Remove the lock file, and its parent if nothing else is in there, and unlock it."""
    # In this order: once the file has gone, another process may lock a new one.
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()
    os.close(handle)


def _holder(path: Path) -> str:
    try:
        _, process, host = path.read_text().split()
    except (OSError, ValueError):  # it has just come or is just going
        return "another process"
    return f"process {process} on {host}"


def _is_open_as(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
