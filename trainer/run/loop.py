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
from trainer.model.size import parameter_counts
from trainer.objective.pretraining import TOKENS
from trainer.report.console import RunConsole
from trainer.report.metrics import MetricsLog, row
from trainer.run.folder import RunFolder, require_shared
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
    log = together(lambda: _begin(folder, config, resolved) if folder is not None else None)
    if first:
        name = config.data.path or "the source text of Python's standard library"
        console.begin(layout, *parameter_counts(config.model), f"{name}: {text.describe()}")
    try:
        run = _Run(Trainer(layout), text, console, stop, log, companions)
        run.steps()
    finally:
        console.end()
        if log is not None:
            log.close()
    leave()


def _begin(folder: RunFolder, config: Config, resolved: str) -> MetricsLog:
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
    """All steps, evaluations and the final weights. log, companions: on the first rank only."""

    trainer: Trainer
    text: Text
    console: RunConsole
    stop: StopRequest
    log: MetricsLog | None
    companions: Companions | None

    def steps(self) -> None:
        """Train to the end; Stopped in between if asked to."""
        config, stop = self.trainer.layout.config, self.stop
        tokens = config.data.global_batch * config.data.sequence_length
        for step in range(config.run.steps):
            begin = time.perf_counter()
            metrics = self._step(step)
            if metrics.stop:
                stop.reached()
            values = row(step, metrics, tokens, time.perf_counter() - begin)
            last = step + 1 == config.run.steps
            every = config.metrics.eval_every
            saved = self._save() if last else None  # first: an evaluation can be killed
            if last or (every and (step + 1) % every == 0 and not metrics.stop):
                values["validation_loss"] = self._evaluate(step, saved)
            if self.log is not None:
                self.log.write(values)
            self.console.step(values)
            if "validation_loss" in values:
                loss = values["validation_loss"]
                self.console.say(f"validation loss {loss:.4f} after step {step + 1}")
            if metrics.stop and not last:
                why = f"stopped after step {step + 1}; {self._save()}"
                raise Stopped(stop.signal or signal.SIGTERM, why)
        if config.data.path is None and (entropy := self.text.bigram_entropy()) is not None:
            self.console.say(_compared_with_bigrams(entropy, values["validation_loss"]))
        self.console.say(saved or "")

    def _step(self, step: int) -> StepMetrics:
        try:
            batch = _micro_batches(self.trainer.layout, self.text, step)
            return self.trainer.step(step, batch, self.stop.asked)
        except NonFiniteError as error:  # on all ranks, with the weights of the step before
            raise NonFiniteError(f"{error}; {self._save()}") from error

    def _evaluate(self, step: int, saved: str | None) -> float:
        """The validation loss; `saved` says where the weights are, if they are saved."""
        means = self.trainer.evaluate({TOKENS: self.text.windows}, lambda: self.stop.asked)
        if means is None:
            signalled, where = self.stop.signal or signal.SIGTERM, saved or self._save()
            raise Stopped(signalled, f"stopped in the evaluation after step {step + 1}; {where}")
        loss = means["loss"]
        if not math.isfinite(loss):
            where = saved or self._save()
            raise NonFiniteError(f"step {step}: the validation loss is {loss}; {where}")
        return loss

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
    rank, ranks = layout.data_rank, layout.mesh.data
    count = layout.config.pipeline.micro_batches
    return lambda m: {TOKENS: text.batches.micro_batch(step, rank, ranks, m, count)}


def _compared_with_bigrams(entropy: float, loss: float) -> str:
    verdict = "below" if loss < entropy else "NOT below"
    return (
        f"a byte-bigram model of the same text has {entropy:.4f} nats a byte on the same held-out "
        f"text: the model is {verdict} it, at {loss:.4f}"
    )
