"""The run: from a config to a trained model."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml

from parallel.ranks.groups import patient_world
from parallel.ranks.process import Process, join, leave
from parallel.ranks.roll_call import RollCall
from parallel.ranks.together import gather, together
from trainer.build.layout import Layout, build
from trainer.build.text import Text, load_text
from trainer.checkpoint.export import checkpoint_bytes, save_checkpoint
from trainer.checkpoint.hf.companions import Companions, read_companions
from trainer.checkpoint.hf.output_folder import require_room
from trainer.config.schema import Config
from trainer.errors import RunError, Stopped, TandemError
from trainer.model.size import parameter_counts
from trainer.objective.pretraining import TOKENS
from trainer.report.console import RunConsole
from trainer.report.metrics import MetricsLog, row
from trainer.run.folder import RunFolder, require_shared
from trainer.run.inputs import require_inputs_outside
from trainer.run.signals import StopRequest
from trainer.run.step import GetMicroBatch, NonFiniteError, StepMetrics, Trainer


def train(
    config: Config, resolved: str, stop: StopRequest, config_files: Sequence[str] = ()
) -> None:
    """Train as `config` says; `resolved` is that config as YAML, for the run folder; config_files:
    what it was read from, which is not to be written over.

    Raises RunError or DataError, in one line, for what can be foreseen, and Stopped after a signal
    once the step has ended and the weights are saved.
    """
    process = Process.from_environment()
    device = process.device(config.run.device)
    roll_call = join(process, device, timedelta(seconds=config.run.timeout), "env://")
    console = RunConsole(config, quiet=process.rank > 0)

    def claim() -> AbstractContextManager[RunFolder | None]:
        return _claim(config, config_files) if process.rank == 0 else nullcontext()

    with roll_call.held_on_failure(lambda: stop.asked), together(claim) as folder:
        try:
            _train(config, resolved, stop, process, roll_call, console, folder)
        finally:
            if folder is not None and (kept := folder.previous_weights()):
                console.say(f"the weights of the run that was replaced are still in {kept}")
    leave()


def _claim(config: Config, config_files: Sequence[str]) -> RunFolder:
    wanted = Path(config.run.dir) / config.run.name
    if config.run.overwrite:
        require_inputs_outside(wanted, config, config_files)
    return RunFolder(wanted, config.run.overwrite)


def _train(
    config: Config,
    resolved: str,
    stop: StopRequest,
    process: Process,
    roll_call: RollCall,
    console: RunConsole,
    folder: RunFolder | None,
) -> None:
    """The run in its folder, which the first rank has claimed."""
    device = process.device(config.run.device)
    first = process.rank == 0
    path: Path = gather(folder.path if folder is not None else None)[0]
    taken = path.name != config.run.name
    console.say(f"run folder: {path}" + f" ({config.run.name} is taken)" * taken)
    together(lambda: require_shared(path))
    patient = patient_world(timedelta(seconds=config.run.io_timeout))
    text = together(lambda: load_text(config), patient)
    _require_same(resolved, text)
    with console.bytes("reading weights") as progress:
        layout = build(config, process, device, patient, progress)
    companions = together(lambda: read_companions(config) if first else None)
    room = checkpoint_bytes(layout) if config.checkpoint.export_hf else 0
    log = together(lambda: _begin(folder, config, resolved, room) if folder is not None else None)
    if first:
        name = config.data.path or "the source text of Python's standard library"
        console.begin(layout, *parameter_counts(config.model), f"{name}: {text.describe()}")
    try:
        run = _Run(Trainer(layout), text, console, stop, folder, log, companions, roll_call)
        run.steps()
    finally:
        console.end()
        if log is not None:
            log.close()


def _begin(folder: RunFolder, config: Config, resolved: str, room: int) -> MetricsLog:
    """room: bytes of the weights that will be saved."""
    advice = ", set run.dir to another disk, or checkpoint.export_dtype to a smaller type"
    require_room(folder.weights(), room, advice)
    folder.begin(resolved)
    return MetricsLog(folder.path, config, yaml.safe_load(resolved))


def _require_same(resolved: str, text: Text) -> None:
    """Raise RunError on all ranks unless all have read the same config and the same text."""
    mine = {
        "config": hashlib.sha256(resolved.encode()).hexdigest(),
        "text (data.path, or the version of Python)": text.fingerprint(),
    }
    for rank, theirs in enumerate(everyone := gather(mine)):
        for what, value in theirs.items():
            if value != everyone[0][what]:
                raise RunError(f"rank {rank} has another {what} than rank 0: give all the same")


@dataclass(frozen=True)
class _Run:
    """All steps, evaluations and the final weights. folder, log, companions: on the first rank
    only."""

    trainer: Trainer
    text: Text
    console: RunConsole
    stop: StopRequest
    folder: RunFolder | None
    log: MetricsLog | None
    companions: Companions | None
    roll_call: RollCall

    def steps(self) -> None:
        """Train to the end; Stopped in between if asked to."""
        config, stop = self.trainer.layout.config, self.stop
        stop.training()
        tokens = config.data.global_batch * config.data.sequence_length
        for step in range(config.run.steps):
            begin = time.perf_counter()
            self._note(f"in step {step + 1}")
            metrics = self._step(step)
            if metrics.stop:
                stop.reached()
            values = row(step, metrics, tokens, time.perf_counter() - begin)
            last = step + 1 == config.run.steps
            every = config.metrics.eval_every
            saved = self._save() if last else None  # first: an evaluation can be killed
            interrupted = False
            if last or (every and (step + 1) % every == 0 and not metrics.stop):
                loss = self._evaluate(step, saved)
                interrupted = loss is None
                values |= {} if loss is None else {"validation_loss": loss}
            if self.log is not None:
                self.log.write(values)
            self.console.step(values)
            if "validation_loss" in values:
                loss = values["validation_loss"]
                self.console.say(f"validation loss {loss:.4f} after step {step + 1}")
            if interrupted or (metrics.stop and not last):
                when = f"{'in the evaluation ' * interrupted}after step {step + 1}"
                why = f"stopped {when}; {saved or self._save()}"
                raise Stopped(stop.signal or signal.SIGTERM, why)
        if config.data.path is None and (entropy := self.text.bigram_entropy()) is not None:
            self.console.say(_compared_with_bigrams(entropy, values["validation_loss"]))
        self.console.say(saved or "")

    def _step(self, step: int) -> StepMetrics:
        try:
            batch = _micro_batches(self.trainer.layout, self.text, step)
            return self.trainer.step(step, batch, self.stop.asked)
        except NonFiniteError as error:  # on all ranks, with the weights of the step before
            raise NonFiniteError(f"{error}; {self._save_or_why_not()}") from error

    def _evaluate(self, step: int, saved: str | None) -> float | None:
        """The validation loss, None if asked to stop; `saved` says where the weights are, if they
        are saved."""
        self._note(f"evaluating after step {step + 1}")
        means = self.trainer.evaluate({TOKENS: self.text.windows}, lambda: self.stop.asked)
        if means is None:
            return None
        loss = means["loss"]
        if not math.isfinite(loss):
            where = saved or self._save_or_why_not()
            raise NonFiniteError(f"step {step}: the validation loss is {loss}; {where}")
        return loss

    def _note(self, doing: str) -> None:
        if not self.stop.asked:  # the store may have gone with whoever asked
            self.roll_call.note(doing)

    def _save(self, failed: bool = False) -> str:
        """Save the weights, and say where. failed: those of a replaced run stay as well."""
        config = self.trainer.layout.config
        if not config.checkpoint.export_hf:
            return "no weights saved, as checkpoint.export_hf says"
        self.stop.reached()  # a signal from here on lets it finish
        self._note("saving weights")
        folder = self.folder
        place = together(lambda: folder.weights() if folder is not None else None)
        weights: Path = gather(place)[0]
        with self.console.bytes("saving weights") as progress:
            save_checkpoint(self.trainer.layout, weights, self.companions, progress)
        said = folder.saved(keep_previous=failed) if folder is not None else ""
        return f"weights in {weights}{said}"

    def _save_or_why_not(self) -> str:
        """Save the weights of a run that has failed, and say where; or why they are not saved, as
        they may be no numbers either: an error of its own would hide the first."""
        try:
            return self._save(failed=True)
        except TandemError as error:
            return str(error)


def _micro_batches(layout: Layout, text: Text, step: int) -> GetMicroBatch:
    rank, ranks = layout.data_rank, layout.mesh.data
    count = layout.config.pipeline.micro_batches
    return lambda m: {TOKENS: text.batches.micro_batch(step, rank, ranks, m, count)}


def _compared_with_bigrams(entropy: float, loss: float) -> str:
    verdict = "below" if loss < entropy else "NOT below"
    return (
        f"a byte-bigram model of the same text has {entropy:.4f} nats a byte on the same held-out "
        f"text: the model is {verdict} it, at {loss:.4f}"
    )
