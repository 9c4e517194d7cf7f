"""The folder of a run: runs/NAME with config.yaml, metrics.jsonl and weights/."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import IO

from trainer.errors import RunError


class RunFolder:
    """A run folder that this process has claimed; only rank 0 makes one."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        """Make the folder, or empty it if it holds a finished run and `overwrite` says so.

        Raises RunError where another run is in it, or has been and `overwrite` does not say so, or
        it cannot be written.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = open(path / ".lock", "w")  # noqa: SIM115 (held for the run)
        except OSError as error:
            raise RunError(f"run.dir: cannot make {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"run.name: the run folder {path} is in use by a run that is going on: choose "
                "another run.name"
            ) from error
        contents = [entry for entry in path.iterdir() if entry.name != ".lock"]
        if contents and not (path / "config.yaml").exists():
            raise RunError(
                f"run.name: {path} is not empty and not a run folder: choose another run.name"
            )
        if contents and not overwrite:
            raise RunError(
                f"run.name: the run folder {path} holds a run: choose another run.name, or set "
                "run.overwrite to true to replace it"
            )
        for entry in contents:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)
