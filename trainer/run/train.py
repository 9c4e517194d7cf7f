"""A run: from a config to a trained model in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path

from parallel.ranks.groups import patient_world
from parallel.ranks.process import Process, join, leave
from parallel.ranks.roll_call import RollCall
from parallel.ranks.together import gather, together
from parallel.tape.recorder import Recorder, Silence
from trainer.build.layout import build
from trainer.build.training_text import Text, load_text
from trainer.checkpoint.export import checkpoint_bytes
from trainer.checkpoint.hf.companions import read_companions
from trainer.checkpoint.hf.output_folder import require_room
from trainer.config.schema import Config
from trainer.errors import RunError
from trainer.report.console import RunConsole
from trainer.report.metrics import Metrics, Sink
from trainer.report.sinks import open_sinks, require_packages
from trainer.run.describe import describe
from trainer.run.flight import flight_recorder
from trainer.run.folder import FLIGHT, RunFolder, require_shared
from trainer.run.inputs import require_inputs_outside
from trainer.run.loop import Loop
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

    def claim() -> AbstractContextManager[RunFolder | None]:
        return _claim(config, config_files) if process.rank == 0 else nullcontext()

    with ExitStack() as stack:
        stack.enter_context(roll_call.held_on_failure(lambda: stop.asked))
        with stop.held_back():  # between making the folder and being able to remove it again
            folder = stack.enter_context(together(claim))
        path = _shared_path(folder, config, console)
        recorder = stack.enter_context(
            flight_recorder(path / FLIGHT, process.rank, process.world, roll_call)
        )
        try:
            _train(config, resolved, stop, process, roll_call, console, folder, recorder)
        finally:
            if folder is not None and (kept := folder.previous_weights()):
                console.say(f"the weights of the run that was replaced are still in {kept}")
    leave()


def _claim(config: Config, config_files: Sequence[str]) -> RunFolder:
    wanted = Path(config.run.dir) / config.run.name
    if config.run.overwrite:
        require_inputs_outside(wanted, config, config_files)
    return RunFolder(wanted, config.run.overwrite)


def _shared_path(folder: RunFolder | None, config: Config, console: RunConsole) -> Path:
    """Where the folder is that the first rank has claimed. Collective."""
    path: Path = gather(folder.path if folder is not None else None)[0]
    taken = path.name != config.run.name
    console.say(f"run folder: {path}" + f" ({config.run.name} is taken)" * taken)
    together(lambda: require_shared(path))
    return path


def _train(
    config: Config,
    resolved: str,
    stop: StopRequest,
    process: Process,
    roll_call: RollCall,
    console: RunConsole,
    folder: RunFolder | None,
    recorder: Recorder | None,
) -> None:
    """The run in its folder, which the first rank has claimed."""
    device = process.device(config.run.device)
    first = process.rank == 0
    patient = patient_world(timedelta(seconds=config.run.io_timeout))
    text = together(lambda: load_text(config), patient)
    _require_same(resolved, text)
    with console.bytes("reading weights") as progress:
        layout = build(config, process, device, patient, progress)
    companions = together(lambda: read_companions(config) if first else None)
    room = checkpoint_bytes(layout) if config.checkpoint.export_hf else 0
    sinks = together(lambda: _open_sinks(folder, config, resolved, room) if folder else [])
    metrics = Metrics([*sinks, console])
    console.start(describe(layout, text))
    try:
        trainer = Trainer(layout, recorder or Silence())
        Loop(trainer, text, console, stop, folder, metrics, companions, roll_call).run()
    finally:
        for line in metrics.close():
            console.say(line)


def _open_sinks(folder: RunFolder, config: Config, resolved: str, room: int) -> list[Sink]:
    """Take the folder over, and open all sinks but the console. room: bytes of the weights that
    will be saved."""
    require_packages(config.metrics)
    advice = ", set run.dir to another disk, or checkpoint.export_dtype to a smaller type"
    require_room(folder.weights(), room, advice)
    folder.take_over(resolved)
    return open_sinks(folder.path, config.metrics, resolved)


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
