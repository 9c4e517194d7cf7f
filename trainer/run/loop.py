"""The run: from a config to a trained model."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml

from parallel.ranks.groups import patient_world
from parallel.ranks.process import Process, join, leave
from parallel.ranks.together import gather, together
from trainer.build.layout import Layout, build
from trainer.build.text import Text, load_text
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import Companions, read_companions
from trainer.config.schema import Config
from trainer.errors import RunError, Stopped
from trainer.report.console import RunConsole
from trainer.report.json_lines import JsonLines
from trainer.report.metrics import Metrics, Sink
from trainer.report.picture import draw_own_run
from trainer.report.weights_and_biases import WeightsAndBiases, require_installed
from trainer.run.describe import describe
from trainer.run.folder import RunFolder, require_shared
from trainer.run.records import record_step, record_validation
from trainer.run.signals import StopRequest
from trainer.run.step import GetMicroBatch, NonFiniteError, StepMetrics, Trainer


def train(config: Config, resolved: str, stop: StopRequest) -> None:
    """Train as `config` says; `resolved` is that config as YAML, for the run folder.

    Raises RunError or DataError, in one line, for what can be foreseen, and Stopped after a signal
    once the step has ended and the weights are saved.
    """
    process = Process.from_environment()
    device = process.device(config.run.device)
    join(process, device, timedelta(seconds=config.run.timeout), "env://")
    console = RunConsole(config, quiet=process.rank > 0)
    path = Path(config.run.dir) / config.run.name
    first = process.rank == 0
    folder = together(lambda: RunFolder(path, config.run.overwrite) if first else None)
    together(lambda: require_shared(path))
    patient = patient_world(timedelta(seconds=config.run.io_timeout))
    text = together(lambda: load_text(config), patient)
    _require_same(resolved, text)
    with console.bytes("reading weights") as progress:
        layout = build(config, process, device, patient, progress)
    companions = together(lambda: read_companions(config) if first else None)
    sinks = together(lambda: _begin(folder, config, resolved) if folder is not None else [])
    metrics = Metrics([*sinks, console])
    console.start(describe(layout, text))
    try:
        _Run(Trainer(layout), text, console, stop, metrics, companions).steps()
    finally:
        for line in metrics.close():
            console.say(line)
    leave()


def _begin(folder: RunFolder, config: Config, resolved: str) -> list[Sink]:
    """Replace what is in the folder, and open all sinks but the console."""
    wandb = config.metrics.wandb
    if wandb != "off":
        require_installed()
    folder.begin(resolved)
    sinks: list[Sink] = [JsonLines(folder.path)]
    if wandb != "off":
        settings = yaml.safe_load(resolved)
        sinks.append(WeightsAndBiases(folder.path, wandb, config.run.name, settings))
    return sinks


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
    """All steps, evaluations and the final weights. companions: on the first rank only."""

    trainer: Trainer
    text: Text
    console: RunConsole
    stop: StopRequest
    metrics: Metrics
    companions: Companions | None

    def steps(self) -> None:
        """Train to the end, then draw the run; Stopped in between if asked to."""
        try:
            self._steps()
        except (Stopped, NonFiniteError):  # on all ranks
            self._draw()
            raise
        self._draw()

    def _steps(self) -> None:
        config, stop = self.trainer.layout.config, self.stop
        for step in range(config.run.steps):
            begin = time.perf_counter()
            done = self._step(step)
            if done.stop:
                stop.reached()
            record_step(self.metrics, step, done, time.perf_counter() - begin, config)
            last = step + 1 == config.run.steps
            saved = self._save() if last else None  # first: an evaluation can be killed
            try:
                if last or (_is_due(step, config.metrics.eval_every) and not done.stop):
                    loss = self._evaluate(step, saved)
                    record_validation(self.metrics, loss, self.text.bytes_per_token())
            finally:  # the step's own values are kept however that ends
                self.metrics.end_step(step)
            if done.stop and not last:
                why = f"stopped after step {step + 1}; {self._save()}"
                raise Stopped(stop.signal or signal.SIGTERM, why)
        if (entropy := self.text.bigram_entropy()) is not None:
            self.console.say(_compared_with_bigrams(entropy, loss))
        self.console.say(saved or "")

    def _step(self, step: int) -> StepMetrics:
        try:
            batch = _micro_batches(self.trainer.layout, self.text, step)
            return self.trainer.step(step, batch, self.stop.asked)
        except NonFiniteError as error:  # on all ranks, with the weights of the step before
            raise NonFiniteError(f"{error}; {self._save()}") from error

    def _evaluate(self, step: int, saved: str | None) -> float:
        """The validation loss; `saved` says where the weights are, if they are saved."""
        loss = self.trainer.evaluate(self.text.windows)
        if not math.isfinite(loss):
            where = saved or self._save()
            raise NonFiniteError(f"step {step}: the validation loss is {loss}; {where}")
        return loss

    def _draw(self) -> None:
        """Draw the run into its folder; the others wait, lest their end stops it."""
        config = self.trainer.layout.config
        folder = Path(config.run.dir) / config.run.name
        first = self.trainer.layout.process.rank == 0
        if config.metrics.picture:
            together(lambda: self.console.say(draw_own_run(folder)) if first else None)

    def _save(self) -> str:
        """Save the weights, and say where."""
        config = self.trainer.layout.config
        if not config.checkpoint.export_hf:
            return "no weights saved, as checkpoint.export_hf says"
        self.stop.reached()  # a signal from here on lets it finish
        folder = Path(config.run.dir) / config.run.name / "weights"
        with self.console.bytes("saving weights") as progress:
            save_checkpoint(self.trainer.layout, folder, self.companions, progress)
        return f"weights in {folder}"


def _micro_batches(layout: Layout, text: Text, step: int) -> GetMicroBatch:
    rank, ranks = layout.mesh.data_rank(layout.process.rank), layout.mesh.data
    count = layout.config.pipeline.micro_batches
    return lambda m: text.batches.micro_batch(step, rank, ranks, m, count)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0


def _compared_with_bigrams(entropy: float, loss: float) -> str:
    verdict = "below" if loss < entropy else "NOT below"
    return f"byte-bigram model: {entropy:.4f} nats per byte; this model: {loss:.4f}, {verdict} it"
