"""The folder of a run: runs/NAME with config.yaml, metrics.jsonl and weights/."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import RunError
from trainer.io.folder_lock import FolderLock, LockedError

LOCK = ".lock"


class RunFolder:
    """A run folder that this process has claimed; only rank 0 makes one.

    Claiming it changes nothing that is in it: an earlier run is replaced by `begin` only, when
    everything else that can go wrong at the start has not.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        """Make the folder and lock it.

        Raises RunError where another run is in it, or has been and `overwrite` does not say that it
        may go, or it cannot be written.
        """
        self.path = path
        with _saying(f"run.dir: cannot make {path}"):
            path.mkdir(parents=True, exist_ok=True)
            (path / LOCK).touch()
        try:
            with _saying(f"run.dir: cannot lock {path / LOCK}"):
                self._lock = FolderLock(path / LOCK)
        except LockedError as error:
            raise RunError(
                f"run.name: the run folder {path} is in use by a run that is going on: choose "
                "another run.name"
            ) from error
        contents = self._contents()
        if contents and not (path / "config.yaml").exists():
            raise RunError(
                f"run.name: {path} is not empty and not a run folder: choose another run.name"
            )
        if self._holds_a_run() and not overwrite:
            raise RunError(
                f"run.name: the run folder {path} holds a run: choose another run.name, or set "
                "run.overwrite to true to replace it"
            )

    def begin(self, config: str) -> None:
        """Empty the folder and write the resolved config, YAML, into it."""
        with _saying(f"run.dir: cannot write {self.path}"):
            for entry in self._contents():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            (self.path / "config.yaml").write_text(config)

    def _contents(self) -> list[Path]:
        with _saying(f"run.dir: cannot read {self.path}"):
            return [entry for entry in self.path.iterdir() if entry.name != LOCK]

    def _holds_a_run(self) -> bool:
        """Whether a run has been here that finished a step or saved weights."""
        metrics = self.path / "metrics.jsonl"
        return (self.path / "weights").exists() or (metrics.exists() and metrics.stat().st_size > 0)


def require_shared(path: Path) -> None:
    """Raise RunError unless this rank sees the folder that rank 0 has claimed."""
    if not (path / LOCK).exists():
        raise RunError(
            f"run.dir: {path} was made by rank 0 but is not there on this machine: set run.dir to "
            "a folder on a file system that all ranks share, for each rank saves its own weights"
        )


@contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{what}: {error.strerror}") from error
