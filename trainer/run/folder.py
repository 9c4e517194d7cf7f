"""The folder of a run: runs/NAME with config.yaml, metrics.jsonl, checkpoints/ and weights/.

A folder is a run folder if it has the marker that a run writes into it before anything else; no
other folder is ever written to or replaced. Nor is anything outside of it: links are not followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from trainer.checkpoint.hf.architecture import CONFIG_FILE
from trainer.errors import RunError
from trainer.io.folder_lock import FolderLock, LockedError
from trainer.io.no_links import create, open_plain, remove
from trainer.run.status import STATUS

MARKER, LOCK = ".tandem-run", ".lock"
CONFIG, METRICS, WEIGHTS = "config.yaml", "metrics.jsonl", "weights"
FLIGHT = "flight"  # what each rank is doing
AVERAGED = "weights-ema"  # averaged by optimizer.ema
PREVIOUS = "previous-weights"  # of the run that was replaced, until this one has weights
_MARK = b"A run folder of Tandem: with run.overwrite, a run of this name replaces what is in it.\n"
_NEW_CONFIG = ".config.yaml.new"


class InUseError(RunError):
    """Another run is using the folder."""


class RunFolder:
    """A run folder that this process has claimed; only rank 0 makes one. As a context, it gives the
    folder up at the end, and removes one that it made if no step was finished in it.

    path: the folder. lost: where it was, if that was removed or replaced during the run. Claiming
    changes nothing that is in a folder: `take_over` replaces an earlier run, or `go_on` goes on
    with it, when everything else that can go wrong at the start has not.
    """

    def __init__(self, wanted: Path, overwrite: bool) -> None:
        """Make and lock the folder `wanted`, or, where that is taken, the first of `wanted`-2, -3
        and so on that is not. With `overwrite`, lock `wanted` if it is a run folder.

        Raises RunError where a folder cannot be made, or what `overwrite` would replace is not a
        run folder, and InUseError where another run is using that.
        """
        self._wanted = wanted
        self._config, self._over = "", False
        self.lost: Path | None = None
        with _saying(f"run.dir: cannot make {wanted}"):
            wanted.parent.mkdir(parents=True, exist_ok=True)
        if overwrite and os.path.lexists(wanted):
            self.path, self._made = wanted, False
            _require_run_folder(wanted)
            self._lock = _lock(wanted)
        else:
            self._make()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        if not self._lock.held():  # what is there now is not ours
            return
        with suppress(OSError):
            empty = self._made and self._nothing_done()
            for name in (CONFIG, METRICS, STATUS, MARKER) if empty else ():
                (self.path / name).unlink(missing_ok=True)
            self._lock.release()
            if empty:
                self.path.rmdir()

    def held(self) -> bool:
        """Whether it is still this run's: neither removed nor replaced."""
        return self._lock.held()

    def take_over(self, config: str) -> None:
        """Write the resolved config, YAML, in place of all that an earlier run left, except its
        weights, which are kept aside. Raises RunError."""
        self._config = config
        with _saying(f"run.dir: cannot write {self.path}"):
            new = self.path / _NEW_CONFIG
            remove(new)
            create(new, config.encode())  # first: on a full disk, nothing is touched
            if (self.path / WEIGHTS / CONFIG_FILE).is_file():
                remove(self.path / PREVIOUS)
                (self.path / WEIGHTS).rename(self.path / PREVIOUS)
            for entry in list(self.path.iterdir()):
                if entry.name not in (MARKER, LOCK, PREVIOUS, FLIGHT, new.name):
                    remove(entry)
            new.rename(self.path / CONFIG)

    def go_on(self, config: str) -> None:
        """Write the resolved config, YAML, of a run that goes on with what is there. Raises
        RunError."""
        self._config = config
        with _saying(f"run.dir: cannot write {self.path}"):
            new = self.path / _NEW_CONFIG
            remove(new)
            create(new, config.encode())
            new.rename(self.path / CONFIG)

    def previous_weights(self) -> Path | None:
        """Where the weights of the run that was replaced are, while they are."""
        previous = self.path / PREVIOUS
        return previous if os.path.lexists(previous) else None

    def place(self) -> Path:
        """Where to save: the folder, or a new one if that was removed or replaced during the run,
        with which another run may have nothing to do. Raises RunError, also after the run."""
        if self._over:  # a checkpoint that is still being saved makes no folder any more
            raise RunError(f"run.dir: the run in {self.path} is over")
        if not self._lock.held():
            self.lost = self.path
            with _saying(f"run.dir: cannot make {self._wanted}"):
                self._wanted.parent.mkdir(parents=True, exist_ok=True)
            self._make()
            self.take_over(self._config)
        return self.path

    def weights(self) -> Path:
        """Where to save the weights. Raises RunError."""
        return self.place() / WEIGHTS

    def saved(self, keep_previous: bool) -> str:
        """The weights are saved: those of the run that was replaced go. What there is to say."""
        said = f", as {self.lost} was removed or replaced meanwhile" if self.lost else ""
        try:
            if not keep_previous:
                remove(self.path / PREVIOUS)
        except OSError as error:
            said += f"; cannot remove {self.path / PREVIOUS}: {error.strerror or error}"
        return said

    def _make(self) -> None:
        """Make the first folder of this name that is not there; two processes never make one."""
        with _saying(f"run.dir: cannot make {self._wanted}"):
            for number in count(1):
                name = self._wanted.name if number == 1 else f"{self._wanted.name}-{number}"
                with suppress(FileExistsError):
                    self.path, self._made = self._wanted.with_name(name), True
                    self.path.mkdir()
                    break
            try:
                create(self.path / MARKER, _MARK)
                self._lock = _lock(self.path)
            except BaseException:
                for name in (LOCK, MARKER):
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()
                raise

    def _nothing_done(self) -> bool:
        """Whether no step was finished here, nor anything else left that a person may want."""
        names = {entry.name for entry in self.path.iterdir()}
        metrics = self.path / METRICS
        return names <= {MARKER, LOCK, CONFIG, METRICS, STATUS} and not (
            metrics.exists() and metrics.stat().st_size
        )


def require_shared(path: Path) -> None:
    """Raise RunError unless this rank sees the folder that rank 0 has claimed."""
    if not (path / LOCK).exists():
        raise RunError(
            f"run.dir: {path} was made by rank 0 but is not there on this machine: set run.dir to "
            "a folder on a file system that all ranks share, for each rank saves its own weights"
        )


def is_run_folder(path: Path) -> bool:
    """Whether `path` is a folder, no link to one, with our marker."""
    if path.is_symlink():
        return False
    try:
        with open(open_plain(path / MARKER, os.O_RDONLY), "rb") as file:
            return file.read(len(_MARK) + 1) == _MARK
    except (OSError, RunError):
        return False


def _require_run_folder(path: Path) -> None:
    """Raise RunError unless `path` is a folder, no link to one, with our marker."""
    if path.is_symlink():
        raise RunError(
            f"run.overwrite: {path} is a link, which is not followed: set run.dir and run.name to "
            "where it leads, or choose another run.name"
        )
    if not is_run_folder(path):
        raise RunError(
            f"run.overwrite: {path} is not a run folder, or one of an earlier version (it has no "
            f"{MARKER} as a run writes it): move or remove it yourself, or choose another run.name"
        )


def _lock(path: Path) -> FolderLock:
    try:
        with _saying(f"run.dir: cannot lock {path / LOCK}"):
            return FolderLock(path / LOCK)
    except LockedError as error:
        raise InUseError(
            f"run.overwrite: {path} is in use by another run, {error.holder}: choose "
            "another run.name, or leave out run.overwrite to get a new folder"
        ) from error


@contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{what}: {error.strerror or error}") from error
