"""The run: from a config to a trained model."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import Tensor

from parallel.process import Process, join, leave
from parallel.together import together
from trainer.config import Config
from trainer.console import RunConsole
from trainer.data.batches import Batches, validation_windows
from trainer.data.bigram import bigram_cross_entropy, bigram_log_probabilities, count_bigrams
from trainer.data.corpus import Split, load_corpus, split_corpus
from trainer.data.tokens import ByteTokenizer
from trainer.errors import Stopped
from trainer.layout import Layout, build
from trainer.metrics import MetricsLog, row
from trainer.model.size import parameter_counts
from trainer.run_folder import RunFolder
from trainer.signals import StopRequest
from trainer.trainer import Trainer
from trainer.weights import save_weights


@dataclass(frozen=True)
class Text:
    """The text of a run. windows: held out, [N, S + 1 + MTP depth]."""

    training: Split
    validation: Split
    batches: Batches
    windows: Tensor


@dataclass
class Outputs:
    """Where rank 0 writes."""

    folder: RunFolder
    log: MetricsLog


def train(config: Config, resolved: str, stop: StopRequest) -> None:
    """Train as `config` says; `resolved` is that config as YAML, for the run folder.

    Raises RunError or DataError, in one line, for what can be foreseen, and Stopped after a signal
    once the step has ended and the weights are saved.
    """
    process = Process.from_environment()
    device = process.device(config.run.device)
    join(process, device, timedelta(seconds=config.run.timeout), "env://")
    console = RunConsole(config, quiet=process.rank > 0)
    outputs = together(lambda: _open_outputs(config, resolved) if process.rank == 0 else None)
    text = together(lambda: _load_text(config))
    layout = build(config, process, device)
    if process.rank == 0:
        console.begin(layout, *parameter_counts(config), _describe(text, config))
    try:
        _run_steps(config, Trainer(layout), text, console, outputs, stop)
    finally:
        console.end()
        if outputs is not None:
            outputs.log.close()
    leave()


def _open_outputs(config: Config, resolved: str) -> Outputs:
    folder = RunFolder(Path(config.run.dir) / config.run.name, config.run.overwrite)
    folder.write("config.yaml", resolved)
    return Outputs(folder, MetricsLog(folder.path, config, yaml.safe_load(resolved)))


def _load_text(config: Config) -> Text:
    data, lookahead = config.data, config.model.mtp.depth
    corpus = load_corpus(data.path, data.text_field, ByteTokenizer())
    training, validation = split_corpus(corpus, data.validation_fraction, config.run.seed)
    windows = validation_windows(
        validation,
        seed=config.run.seed,
        sequence_length=data.sequence_length,
        lookahead=lookahead,
        sequences=config.metrics.eval_sequences,
    )
    batches = Batches(
        training,
        seed=config.run.seed,
        sequence_length=data.sequence_length,
        lookahead=lookahead,
        global_batch=data.global_batch,
    )
    return Text(training, validation, batches, torch.from_numpy(windows.astype("int64")))


def _describe(text: Text, config: Config) -> str:
    name = config.data.path or "the source text of Python's standard library"
    return (
        f"{name}: {text.training.size:,} bytes to train on in {text.training.documents.size:,} "
        f"documents, {text.validation.size:,} held out in {text.validation.documents.size:,}"
    )


def _run_steps(
    config: Config,
    trainer: Trainer,
    text: Text,
    console: RunConsole,
    outputs: Outputs | None,
    stop: StopRequest,
) -> None:
    """All steps, evaluations and the final weights; Stopped in between if asked to."""
    layout = trainer.layout
    tokens = config.data.global_batch * config.data.sequence_length
    for step in range(config.run.steps):
        begin = time.perf_counter()
        metrics = trainer.step(step, _micro_batches(layout, text, step), stop.asked)
        values = row(step, metrics, tokens, time.perf_counter() - begin)
        last = step + 1 == config.run.steps
        every = config.metrics.eval_every
        if last or (every and (step + 1) % every == 0):
            values["validation_loss"] = trainer.evaluate(text.windows)
        if outputs is not None:
            outputs.log.write(values)
        console.step(values)
        if "validation_loss" in values:
            console.say(f"validation loss {values['validation_loss']:.4f} after step {step + 1}")
        if metrics.stop and not last:
            where = _save(config, layout, console)
            raise Stopped(stop.signal or signal.SIGTERM, f"stopped after step {step + 1}; {where}")
    if config.data.path is None:
        console.say(_bigram_line(config, text, values["validation_loss"]))
    console.say(_save(config, layout, console))


def _micro_batches(layout: Layout, text: Text, step: int):  # type: ignore[no-untyped-def]
    rank, ranks = layout.mesh.data_rank(layout.process.rank), layout.mesh.data
    count = layout.config.pipeline.micro_batches
    return lambda m: text.batches.micro_batch(step, rank, ranks, m, count)


def _bigram_line(config: Config, text: Text, loss: float) -> str:
    """How the model compares with a byte-bigram model on the same held-out text."""
    log_probabilities = bigram_log_probabilities(count_bigrams(text.training, 257))
    windows = text.windows.numpy()
    entropy = bigram_cross_entropy(log_probabilities, windows, config.data.sequence_length)
    verdict = "below" if loss < entropy else "NOT below"
    return (
        f"a byte-bigram model of the same text has {entropy:.4f} nats a byte on the same held-out "
        f"text: the model is {verdict} it, at {loss:.4f}"
    )


def _save(config: Config, layout: Layout, console: RunConsole) -> str:
    if not config.checkpoint.save_weights:
        return "no weights saved, as checkpoint.save_weights says"
    folder = Path(config.run.dir) / config.run.name / "weights"
    save_weights(layout, folder)
    return f"weights in {folder}"
