"""A folder that gets its name only when it is whole: it is filled in a hidden one beside it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal

from trainer.checkpoint.hf.writer import saying, sync
from trainer.errors import CheckpointError
from trainer.io.folder_lock import FolderLock, LockedError
from trainer.io.no_links import remove

_NEW, _OLD, _LOCK = "new", "old", "lock"  # in .FOLDER.tandem


def scratch(folder: Path) -> Path:
    """The hidden folder beside `folder` in which its next content is written."""
    return folder.with_name(f".{folder.name}.tandem")


def require_room(folder: Path, needed: int, advice: str) -> None:
    """Raise CheckpointError unless the disk of `folder`, which need not be there yet, has room for
    `needed` bytes; what the next OutputFolder will clear away counts as room."""
    disk = next(parent for parent in folder.absolute().parents if parent.is_dir())
    with saying(folder):
        free = shutil.disk_usage(disk).free + _leftover(folder)
    if free < needed:
        raise CheckpointError(
            f"{folder}: needs {decimal(needed)}, but {disk} has {decimal(free)} left: make room"
            f"{advice}"
        )


def _leftover(folder: Path) -> int:
    return sum(path.lstat().st_size for path in (scratch(folder) / _NEW).glob("*"))


class OutputFolder:
    """A folder that gets its name only when it is whole. As a context, it discards at the end.

    partial: an empty folder, in `scratch(folder)`, for the caller to fill.
    """

    def __init__(self, folder: Path) -> None:
        """Lock `scratch(folder)` and make `partial`.

        Nobody else can start until this one has been committed or discarded, or the process ends:
        call `discard` whatever goes wrong. What a killed process left is cleared away, and the
        folder that it was replacing is put back. Raises CheckpointError, also where another is
        writing `folder`.
        """
        self._folder, self._scratch = folder, scratch(folder)
        self.partial, self._old = self._scratch / _NEW, self._scratch / _OLD
        if self._scratch.is_symlink():
            raise CheckpointError(
                f"{self._scratch}: is a link, where {folder} is written: remove it"
            )
        with saying(folder):
            self._scratch.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = FolderLock(self._scratch / _LOCK)
            except LockedError as error:
                raise CheckpointError(
                    f"{folder}: is being written by {error.holder}: wait for it, or choose another "
                    "folder"
                ) from error
            try:
                self._settle()
                remove(self.partial)
                self.partial.mkdir()
            except BaseException:
                self.discard()
                raise

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def commit(self) -> None:
        """Give the whole folder its name, in place of an older one. Raises CheckpointError.

        Whatever ends this early leaves one whole folder, the old or the new. If that is between the
        two renames, the old one is in `scratch(folder)`: `discard` puts it back, the next
        OutputFolder does after a kill. An error after them says that the new one is in place.
        """
        folder = self._folder
        with saying(folder):
            sync(self.partial)
            if os.path.lexists(folder):
                folder.rename(self._old)
            self.partial.rename(folder)
        try:
            sync(folder.parent)
            self._settle()
        except OSError as error:
            raise CheckpointError(
                f"{folder}: is written and whole, but clearing up after it failed: {error}: "
                f"remove {self._scratch}"
            ) from error
        self.discard()

    def discard(self) -> None:
        """Remove what has not been committed, and put back what it was to replace. Does nothing if
        that has been done already.

        Raises CheckpointError if the old folder cannot be put back.
        """
        if not self._lock.held():
            return
        folder, old = self._folder, self._old
        try:
            self._settle()
        except OSError as error:
            if not os.path.lexists(folder):
                raise CheckpointError(
                    f"{folder}: is gone; rename {old} to it: {error.strerror or error}"
                ) from error
        else:
            shutil.rmtree(self.partial, ignore_errors=True)
        finally:
            self._lock.release()
            with suppress(OSError):  # what could not be removed is in there
                self._scratch.rmdir()

    def _settle(self) -> None:
        """Remove the old folder if the new one is in its place, else put it back."""
        folder, old = self._folder, self._old
        if not os.path.lexists(old):
            return
        if not os.path.lexists(folder):
            old.rename(folder)
        elif self.partial.exists():  # not committed: someone else has made `folder` since
            raise CheckpointError(
                f"{folder}: exists again, and its old content is in {old}: remove one"
            )
        else:
            remove(old)
