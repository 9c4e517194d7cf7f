"""Losses of a checkpoint on named texts: by the passes with which a run evaluates itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from parallel.ranks.process import Process
from trainer.build.layout import build
from trainer.checkpoint.hf.conversion import checked_model
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    PrecisionConfig,
    RunConfig,
)
from trainer.data.bits_per_byte import bits_per_byte
from trainer.evaluate.named_sets import NamedSet
from trainer.objective.pretraining import LOSS, TOKENS
from trainer.run.step import Trainer

Dtype = Literal["bfloat16", "float32", "float64"]
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Score:
    """loss: nats per token. bits_per_byte: None where targets have no bytes. mtp: of each module,
    nats per token, of tokens further ahead."""

    name: str
    tokens: int
    bytes: float
    loss: float
    perplexity: float
    bits_per_byte: float | None
    mtp: list[float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def checkpoint_folder(given: Path) -> Path:
    """Of a checkpoint, or of a run that has saved one."""
    return given / "weights" if (given / "weights").is_dir() else given


def model_of(folder: Path) -> ModelConfig:
    """Raises CheckpointError and ConfigError."""
    return checked_model(Checkpoint(folder))


def evaluator(
    folder: Path, model: ModelConfig, length: int, dtype: Dtype, device: Literal["auto", "cpu"]
) -> Trainer:
    """The model with its weights, for sequences of `length` tokens. Raises CheckpointError."""
    sequences = max(1, _TOKENS_AT_ONCE // length)
    config = Config(
        run=RunConfig(device=device),
        model=replace(model, init_from=str(folder)),
        data=DataConfig(sequence_length=length, global_batch=sequences),
        pipeline=PipelineConfig("1f1b", micro_batches=1),
        precision=PrecisionConfig(dtype),
        optimizer=OptimizerConfig(),
    )
    process = Process()
    return Trainer(build(config, process, process.device(device)))


def score(trainer: Trainer, named: NamedSet) -> Score:
    """Of all its windows."""
    means = trainer.evaluate({TOKENS: named.windows})
    assert means is not None  # nobody asks it to stop
    length = trainer.layout.config.data.sequence_length
    loss, tokens = means[LOSS], len(named.windows) * length
    return Score(
        named.name,
        tokens,
        tokens * named.bytes_per_token,
        loss,
        math.exp(min(loss, 700.0)),
        bits_per_byte(loss, named.bytes_per_token),
        [value for name, value in means.items() if name != LOSS],
    )


def torch_type(dtype: Dtype) -> torch.dtype:
    """The type of that name."""
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found
