"""A run: from a config to a trained model in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from parallel.ranks.process import Process, join, leave
from parallel.ranks.roll_call import RollCall
from parallel.ranks.together import gather, together
from parallel.tape.recorder import Recorder, Silence
from trainer.build.layout import build
from trainer.build.training_text import Text, load_text
from trainer.checkpoint.export import checkpoint_bytes
from trainer.checkpoint.hf.companions import read_companions
from trainer.checkpoint.hf.output_folder import require_room
from trainer.checkpoint.state.checkpoints import Checkpoints, Loaded
from trainer.config.schema import Config
from trainer.errors import RunError
from trainer.recipe.progress import Progress
from trainer.report.console import RunConsole
from trainer.report.metrics import Metrics, Sink
from trainer.report.sinks import open_sinks, require_packages
from trainer.report.wandb_identity import saved_id
from trainer.run.claim import Claim, claim
from trainer.run.describe import describe
from trainer.run.flight import flight_recorder
from trainer.run.folder import FLIGHT, require_shared
from trainer.run.loop import Loop
from trainer.run.resume import resume
from trainer.run.saving import Saving
from trainer.run.signals import StopRequest
from trainer.run.step import Trainer


def train(
    config: Config, resolved: str, stop: StopRequest, config_files: Sequence[str] = ()
) -> None:
    """Train as `config` says; `resolved` is that config as YAML, for the run folder; config_files:
    what it was read from, which must not be overwritten.

    Raises RunError or DataError, in one line, for what can be foreseen, and Stopped after a signal
    once the step has ended and the weights are saved.
    """
    process = Process.from_environment()
    device = process.device(config.run.device)
    roll_call = join(process, device, timedelta(seconds=config.run.timeout), "env://")
    console = RunConsole(config, quiet=process.rank > 0)

    def claimed() -> Claim | None:
        return claim(config, config_files, console.say) if process.rank == 0 else None

    with ExitStack() as stack:
        stack.enter_context(roll_call.held_on_failure(lambda: stop.asked))
        with stop.held_back():  # between making the folder and being able to remove it again
            here = together(claimed)
            if here is not None:
                stack.enter_context(here.folder)
        start = _start(here, config, console)
        recorder = stack.enter_context(
            flight_recorder(start.path / FLIGHT, process.rank, process.world, roll_call)
        )
        try:
            _train(config, resolved, stop, process, roll_call, console, here, start, recorder)
        finally:
            if here is not None and (kept := here.folder.previous_weights()):
                console.say(f"the weights of the run that was replaced are still in {kept}")
    leave()


@dataclass(frozen=True)
class _Start:
    """What all ranks know of the folder that the first has claimed. goes_on: with what is in it.
    start_from: checkpoints, the first readable one of which the run starts from, if any."""

    path: Path
    goes_on: bool
    start_from: Sequence[Path]


def _start(here: Claim | None, config: Config, console: RunConsole) -> _Start:
    """Collective. Raises RunError where a rank does not see the folder."""
    mine = _Start(here.folder.path, here.goes_on, here.start_from) if here else None
    start: _Start = gather(mine)[0]
    taken = start.path.name != config.run.name and not start.goes_on
    console.say(f"run folder: {start.path}" + f" ({config.run.name} is taken)" * taken)
    together(lambda: require_shared(start.path))
    return start


def _train(
    config: Config,
    resolved: str,
    stop: StopRequest,
    process: Process,
    roll_call: RollCall,
    console: RunConsole,
    here: Claim | None,
    start: _Start,
    recorder: Recorder | None,
) -> None:
    """The run in its folder, which the first rank has claimed."""
    device = process.device(config.run.device)
    first, folder = process.rank == 0, here.folder if here else None
    patience = timedelta(seconds=config.run.io_timeout)
    text = together(lambda: load_text(config), patience)
    _require_same(resolved, text)
    with console.bytes("reading weights") as show:
        layout = build(config, process, device, show)
    place: Callable[[], Path] = folder.place if folder else lambda: start.path
    checkpoints = Checkpoints(layout, place, text.fingerprint(), lambda: saved_id(place()))
    resumed = None
    if start.start_from:
        resumed = resume(checkpoints, start.start_from, console, start.goes_on)
    companions = together(lambda: read_companions(config) if first else None)
    room = checkpoint_bytes(layout) if config.checkpoint.export_hf else 0
    sinks = together(
        lambda: _open_sinks(here, config, resolved, room, resumed) if here else [], patience
    )
    metrics = Metrics([*sinks, console])
    trainer, saving = Trainer(layout, recorder or Silence()), Saving(checkpoints, metrics, console)
    console.start(describe(layout, text, trainer.recipe))
    progress = resumed.progress if resumed else Progress()
    loop = Loop(
        trainer, text, console, stop, folder, metrics, companions, roll_call, saving, progress
    )
    try:
        with here.running() if here else nullcontext():
            if resumed:
                metrics.event("restart", progress.step, f"goes on from {resumed.path}")
            loop.run()
    finally:
        for line in metrics.close():
            console.say(line)


def _open_sinks(
    here: Claim, config: Config, resolved: str, room: int, resumed: Loaded | None
) -> list[Sink]:
    """Take the folder over, or go on in it, and open all sinks but the console. room: bytes of the
    weights that will be saved."""
    require_packages(config.metrics)
    advice = ", set run.dir to another disk, or checkpoint.export_dtype to a smaller type"
    require_room(here.folder.weights(), room, advice)
    here.take(resolved)
    if not here.goes_on or resumed is None:
        return open_sinks(here.folder.path, config.metrics, resolved)
    done, wandb_id = resumed.progress.step, resumed.about.wandb
    return open_sinks(here.folder.path, config.metrics, resolved, done, wandb_id)


def _require_same(resolved: str, text: Text) -> None:
    """Raise RunError on all ranks unless all have read the same config and the same text."""
    mine = {
        "config": hashlib.sha256(resolved.encode()).hexdigest(),
        "text (data.path, or the version of Python)": text.fingerprint(),
    }
    for rank, theirs in enumerate(everyone := gather(mine)):
        for what, value in theirs.items():
            if value != everyone[0][what]:
                raise RunError(
                    f"rank {rank} has a different {what} from rank 0: give all ranks the same"
                )
