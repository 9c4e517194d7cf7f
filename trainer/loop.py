"""The run: from a config to a trained model."""

from __future__ import annotations

import hashlib
import signal
import time
import zlib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import Tensor

from parallel.process import Process, join, leave
from parallel.together import gather, together
from trainer.config import Config
from trainer.console import RunConsole
from trainer.data.batches import Batches, validation_windows
from trainer.data.bigram import bigram_cross_entropy, bigram_log_probabilities, count_bigrams
from trainer.data.corpus import Split, load_corpus, split_corpus
from trainer.data.tokens import ByteTokenizer
from trainer.errors import RunError, Stopped
from trainer.layout import Layout, build
from trainer.metrics import MetricsLog, row
from trainer.model.size import parameter_counts
from trainer.run_folder import RunFolder, require_shared
from trainer.signals import StopRequest
from trainer.trainer import NonFiniteError, Trainer
from trainer.weights import save_weights


@dataclass(frozen=True)
class Text:
    """The text of a run. windows: held out, [N, S + 1 + MTP depth]."""

    training: Split
    validation: Split
    batches: Batches
    windows: Tensor


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
    text = together(lambda: _load_text(config))
    _require_same(resolved, text)
    layout = build(config, process, device)
    log = together(lambda: _begin(folder, config, resolved) if folder is not None else None)
    if first:
        console.begin(layout, *parameter_counts(config), _describe(text, config))
    try:
        _run_steps(config, Trainer(layout), text, console, log, stop)
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
    corpus = text.training.corpus
    mine = {
        "config": hashlib.sha256(resolved.encode()).hexdigest(),
        "text (data.path, or the version of Python)": zlib.crc32(corpus.tokens.tobytes()),
    }
    for rank, theirs in enumerate(everyone := gather(mine)):
        for what, value in theirs.items():
            if value != everyone[0][what]:
                raise RunError(f"rank {rank} has another {what} than rank 0: give all the same")


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
    log: MetricsLog | None,
    stop: StopRequest,
) -> None:
    """All steps, evaluations and the final weights; Stopped in between if asked to."""
    layout = trainer.layout
    tokens = config.data.global_batch * config.data.sequence_length
    for step in range(config.run.steps):
        begin = time.perf_counter()
        try:
            metrics = trainer.step(step, _micro_batches(layout, text, step), stop.asked)
        except NonFiniteError as error:  # on all ranks, with the weights of the step before
            raise NonFiniteError(f"{error}; {_save(config, layout)}") from error
        if metrics.stop:
            stop.reached()
        values = row(step, metrics, tokens, time.perf_counter() - begin)
        last = step + 1 == config.run.steps
        every = config.metrics.eval_every
        if last or (every and (step + 1) % every == 0 and not metrics.stop):
            values["validation_loss"] = trainer.evaluate(text.windows)
        if log is not None:
            log.write(values)
        console.step(values)
        if "validation_loss" in values:
            console.say(f"validation loss {values['validation_loss']:.4f} after step {step + 1}")
        if metrics.stop and not last:
            where = _save(config, layout)
            raise Stopped(stop.signal or signal.SIGTERM, f"stopped after step {step + 1}; {where}")
    if config.data.path is None:
        console.say(_bigram_line(config, text, values["validation_loss"]))
    console.say(_save(config, layout))


def _micro_batches(layout: Layout, text: Text, step: int):  # type: ignore[no-untyped-def]
    rank, ranks = layout.mesh.data_rank(layout.process.rank), layout.mesh.data
    count = layout.config.pipeline.micro_batches
    return lambda m: text.batches.micro_batch(step, rank, ranks, m, count)


def _bigram_line(config: Config, text: Text, loss: float) -> str:
    """How the model compares with a byte-bigram model on the same held-out text."""
    log_probabilities = bigram_log_probabilities(
        count_bigrams(text.training, ByteTokenizer().vocabulary_size)
    )
    windows = text.windows.numpy()
    entropy = bigram_cross_entropy(log_probabilities, windows, config.data.sequence_length)
    verdict = "below" if loss < entropy else "NOT below"
    return (
        f"a byte-bigram model of the same text has {entropy:.4f} nats a byte on the same held-out "
        f"text: the model is {verdict} it, at {loss:.4f}"
    )


def _save(config: Config, layout: Layout) -> str:
    if not config.checkpoint.save_weights:
        return "no weights saved, as checkpoint.save_weights says"
    folder = Path(config.run.dir) / config.run.name / "weights"
    save_weights(layout, folder)
    return f"weights in {folder}"
