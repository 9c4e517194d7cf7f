"""Whether the run in a folder is finished: run.json, which says so until it is written again."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from trainer.errors import RunError
from trainer.io.json_object import read_json_object
from trainer.io.no_links import create, remove
from trainer.run.startup import JOB, RESTARTS

STATUS = "run.json"
_NEW = ".run.json.new"

State: TypeAlias = Literal["running", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class Status:
    """state: "running" is also what a killed process leaves. job: the name of the job that runs it,
    as `this_job` gives it. source: checkpoint.resume where that is a folder."""

    state: State = "running"
    job: str | None = None
    source: str | None = None

    @property
    def finished(self) -> bool:
        return self.state == "finished"


def this_job() -> str | None:
    """The name that the supervisor, or torchrun, gives to all that it starts for one command."""
    return os.environ.get(JOB) or os.environ.get("TORCHELASTIC_RUN_ID")


def is_restarted() -> bool:
    """Whether the ranks of this job have been started before, and have failed."""
    counts = os.environ.get(RESTARTS), os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return any(count not in (None, "0") for count in counts)


def read_status(folder: Path) -> Status | None:
    """None where there is none, as in the folders of earlier versions, or it cannot be read."""
    path = folder / STATUS
    if path.is_symlink() or not path.is_file():
        return None
    with suppress(RunError):
        found = read_json_object(path, RunError)
        state, job, source = (found.get(key) for key in ("state", "job", "source"))
        if state in get_args(State):
            return Status(cast(State, state), job and str(job), source and str(source))
    return None


def write_status(folder: Path, status: Status) -> None:
    """In place of the older one, whole or not at all. Raises RunError."""
    new = folder / _NEW
    try:
        remove(new)
        create(new, (json.dumps(asdict(status)) + "\n").encode())
        new.rename(folder / STATUS)
    except OSError as error:
        what = f"run.dir: cannot write {folder / STATUS}"
        raise RunError(f"{what}: {error.strerror or error}") from error
