"""Going on from a checkpoint, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.checkpoint.state.checkpoints import Checkpoints, Loaded
from trainer.checkpoint.state.steps import set_aside
from trainer.errors import CheckpointError
from trainer.report.console import RunConsole


def resume(
    checkpoints: Checkpoints, paths: Sequence[Path], console: RunConsole, goes_on: bool
) -> Loaded:
    """Load the first of `paths` that can be read. Damaged ones are reported, and those of a run
    that goes on get another name, so that they count no more. Raises CheckpointError, ConfigError.
    """
    try:
        with console.bytes("reading a checkpoint") as progress:
            loaded = checkpoints.load(paths, progress)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: set checkpoint.resume to never to start a new run"
        ) from error
    for path, why in loaded.damaged:
        where = path
        if goes_on and checkpoints.first:
            with suppress(OSError):
                where = set_aside(path)
        console.say(f"damaged checkpoint: {why}; it is now {where}; the one before is used")
    console.say(f"goes on from {loaded.path}, after step {loaded.progress.step}")
    return loaded
