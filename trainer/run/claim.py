"""Which folder a run gets, and whether it goes on from a checkpoint: on the first rank, at the
start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from trainer.checkpoint.state.steps import CHECKPOINTS, checkpoints
from trainer.config.schema import Config
from trainer.errors import RunError, Stopped
from trainer.run.folder import InUseError, RunFolder, is_run_folder
from trainer.run.inputs import require_inputs_outside
from trainer.run.status import State, Status, is_restarted, read_status, this_job, write_status

_ENDING = 30.0  # seconds for the processes of a run that has been stopped to end


@dataclass(frozen=True)
class Claim:
    """folder: that this process has claimed. goes_on: it holds this very run, which was
    interrupted. start_from: checkpoints to load the first readable one of; none for a run that
    starts anew. status: of the run from now on."""

    folder: RunFolder
    goes_on: bool
    start_from: Sequence[Path]
    status: Status

    def take(self, config: str) -> None:
        """Write the resolved config, YAML, into the folder, in place of all that an earlier run
        left or beside what this run has. Raises RunError."""
        if self.goes_on:
            self.folder.go_on(config)
        else:
            self.folder.take_over(config)
        write_status(self.folder.path, self.status)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write into the folder how the run within this context has ended, if that can be
        written."""
        state: State = "failed"
        try:
            yield
            state = "finished"
        except Stopped:
            state = "stopped"
            raise
        finally:
            if self.folder.held():
                with suppress(RunError):
                    write_status(self.folder.path, replace(self.status, state=state))


def claim(config: Config, config_files: Sequence[str], say: Callable[[str], None]) -> Claim:
    """Claim the folder of a run.

    The last run of this name, NAME or NAME-2 and so on, goes on in its folder if it is unfinished
    and has a checkpoint; else the run gets a new folder. With checkpoint.resume: never or
    run.overwrite it gets a new one or replaces NAME, but where torchrun starts the ranks of a job
    again, the job goes on in any case. With a folder as checkpoint.resume, a new run starts from
    there, and goes on with itself when started again. Raises RunError and ConfigError.
    """
    wanted, resume = Path(config.run.dir) / config.run.name, config.checkpoint.resume
    source = None if resume in ("auto", "never") else resume
    status = Status("running", this_job(), source)
    last = wanted if config.run.overwrite else _last_of(wanted)
    if last is not None and _goes_on(last, config, source):
        folder = _claimed_when_free(last, say)
        found = list(checkpoints(last / CHECKPOINTS).values())
        if found or source is None:
            return Claim(folder, bool(found), found, status)
        return Claim(folder, False, _checkpoints_of(source), status)
    start_from = [] if source is None else _checkpoints_of(source)
    if config.run.overwrite:
        require_inputs_outside(wanted, config, config_files)
    return Claim(RunFolder(wanted, config.run.overwrite), False, start_from, status)


def _goes_on(folder: Path, config: Config, source: str | None) -> bool:
    """Whether this start is one more of the run in `folder`."""
    status = read_status(folder) if is_run_folder(folder) else None
    if status is None or status.source != source:
        return False
    if is_restarted() and status.job == this_job():
        return True  # even if it is finished: a rank may fail when the first one has said so
    if status.finished:
        return False
    anew = config.run.overwrite or config.checkpoint.resume == "never"
    return not anew and bool(checkpoints(folder / CHECKPOINTS))


def _claimed_when_free(path: Path, say: Callable[[str], None]) -> RunFolder:
    """The unfinished run's folder, once the processes that may still be ending have left it."""
    deadline, said = time.monotonic() + _ENDING, False
    while True:
        try:
            return RunFolder(path, overwrite=True)
        except InUseError as error:
            holder = str(error.__cause__)
            if time.monotonic() > deadline:
                raise RunError(
                    f"{holder}: its run is not over: stop it, or choose another run.name, or set "
                    "checkpoint.resume to never for a new folder"
                ) from error
        if not said:
            said = True
            say(f"{holder}: waiting {_ENDING:.0f} s for it to end")
        time.sleep(0.2)


def _last_of(wanted: Path) -> Path | None:
    """The one with the highest number of `wanted`, `wanted`-2, -3 and so on; None if there is
    none."""
    last = None
    for path in _numbered(wanted):
        if not path.exists():
            return last
        last = path
    raise AssertionError


def _numbered(wanted: Path) -> Iterator[Path]:
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))


def _checkpoints_of(source: str) -> list[Path]:
    """Those of a run, the newest first, or the one that `source` is."""
    path = Path(source).expanduser()
    if not path.is_dir():
        raise RunError(
            f"checkpoint.resume: there is no folder {path}: give auto, never or a folder"
        )
    found = checkpoints(path / CHECKPOINTS) or checkpoints(path)
    return list(found.values()) or [path]
