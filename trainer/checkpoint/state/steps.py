"""The folder of a run's checkpoints, step-00000400 and so on: each has its name only while it is
whole.

A checkpoint is filled under a hidden name, and gets a hidden name again before it is deleted.
Hidden folders that a killed process has left are removed when the next one is written.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint.hf.writer import saying, sync
from trainer.errors import CheckpointError
from trainer.io.no_links import remove

CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d{8,16})")
_NEW, _OLD = ".new-", ".old-"
_DAMAGED = "damaged-"


def name_of(step: int) -> str:
    """The folder of a checkpoint after `step` steps."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder of them by their step, the newest first; damaged ones too."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = {int(m[1]): p for p in folder.iterdir() if (m := _STEP.fullmatch(p.name))}
        return dict(sorted(found.items(), reverse=True))
    return {}


def kept(steps: list[int], keep: int, keep_every: int) -> set[int]:
    """Which of these checkpoints stay: the last `keep`, and for good those of a step that
    `keep_every` divides, if that is not 0."""
    return set(sorted(steps)[-keep:]) | {s for s in steps if keep_every and s % keep_every == 0}


class PartialStep:
    """A checkpoint that is being written. partial: the folder to fill."""

    def __init__(self, folder: Path, step: int, keep: int, keep_every: int) -> None:
        """Clear away what killed processes left in `folder`, which is made if it is not there.

        keep, keep_every: which checkpoints stay once this one is there, as `kept` says. Raises
        CheckpointError. Only one process may write to `folder`, such as the holder of its run's
        lock.
        """
        self._folder, self._keep = folder, (keep, keep_every)
        self._final = folder / name_of(step)
        self.partial = folder / f"{_NEW}{name_of(step)}"
        with saying(self._final):
            if folder.is_symlink():
                raise CheckpointError(f"{folder}: is a link, which is not followed: remove it")
            folder.mkdir(exist_ok=True)
            clear_leftovers(folder)
            self.partial.mkdir()

    def commit(self) -> None:
        """Give it its name, on the disk. Raises CheckpointError."""
        with saying(self._final):
            if os.path.lexists(self._final):  # an older one of this step
                self._final.rename(self._final.with_name(_OLD + self._final.name))
            self.partial.rename(self._final)
            sync(self._folder)

    def delete_others(self) -> None:
        """Delete the checkpoints that are not to stay, once this one is there. Raises OSError; what
        could not be deleted is tried again with the next one."""
        found = checkpoints(self._folder)
        for step in found.keys() - kept(list(found), *self._keep):
            found[step].rename(self._folder / f"{_OLD}{found[step].name}")
        clear_leftovers(self._folder)

    def discard(self) -> None:
        """Remove what was not committed, as far as that can be done."""
        with suppress(OSError):
            remove(self.partial)


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint a name under which none is looked for; that name. Raises
    OSError."""
    for number in range(1000):
        aside = path.with_name(f"{_DAMAGED}{path.name}" + f"-{number + 1}" * (number > 0))
        if not os.path.lexists(aside):
            path.rename(aside)
            return aside
    return path


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes have left in a folder of checkpoints. Raises OSError."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith((_NEW, _OLD)):
            remove(path)
