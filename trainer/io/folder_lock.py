"""The lock file of a folder: the kernel unlocks it when its holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from trainer.errors import RunError
from trainer.io.no_links import open_plain


class LockedError(RunError):
    """The lock is held. holder: "process 1234 on HOST", or "another process"."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path}: is locked by {holder}")
        self.holder = holder


class FolderLock:
    """A lock file that this process holds until `release`, or until nobody refers to this."""

    def __init__(self, path: Path) -> None:
        """Make the file if need be, lock it, and write into it who holds it.

        Raises LockedError where it is held already, also by this process; RunError where `path` is
        no regular file; OSError.
        """
        self._path = path
        self._file = open(_open_or_make(path), "r+b", buffering=0)  # noqa: SIM115 (held, not read)
        try:
            self._lock()
        except BaseException:
            self._file.close()
            raise

    def held(self) -> bool:
        """Whether it is still held: neither released, nor its file removed by hand."""
        return not self._file.closed and self._is_at_path()

    def release(self) -> None:
        """Remove the file and unlock it; a file that has come in its place stays."""
        # In this order: once the file has gone, another process may lock a new one.
        if self.held():
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise LockedError(self._path, self._holder()) from error
            raise
        if not self._is_at_path():  # its last holder removed it meanwhile
            raise LockedError(self._path, self._holder())
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _holder(self) -> str:
        try:
            return os.pread(self._file.fileno(), 300, 0).decode().strip() or "another process"
        except (OSError, ValueError):  # it has just come or is just going
            return "another process"

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat())
        except OSError:
            return False


def _open_or_make(path: Path) -> int:
    while True:
        with suppress(FileNotFoundError):
            return open_plain(path, os.O_RDWR)
        with suppress(FileExistsError):  # another process was faster: lock its file, or fail to
            return open_plain(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
