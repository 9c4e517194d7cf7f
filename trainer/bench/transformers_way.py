"""A training step with transformers' model, as its users write it."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from trainer.bench.throughput import random_tokens
from trainer.bench.turns import Step
from trainer.build.layout import build
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import read_companions
from trainer.config.schema import Config
from trainer.errors import RunError


@dataclass(frozen=True)
class Transformers:
    """Its model in the type of our weights, torch's clipping and fused AdamW; experts by the kernel
    that it chooses itself. weights: a checkpoint. checkpointing: compute each layer again in the
    backward."""

    name: str
    config: Config
    weights: Path
    checkpointing: bool = False

    def start(self) -> Step:
        config, device = self.config, Process().device(self.config.run.device)
        model = load_theirs(self.weights, config).to(device).train()
        if self.checkpointing:
            model.activation_checkpointing_enable()
        adamw = _adamw(model, config)
        length = config.data.sequence_length
        targets = config.data.global_batch * length
        sequences = config.data.global_batch // config.pipeline.micro_batches

        def step(batch: int) -> float:
            loss = 0.0
            for part in random_tokens(config, batch).split(sequences):
                tokens = part.to(device)
                logits = model(tokens[:, :length], use_cache=False).logits
                summed = torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1),
                    tokens[:, 1 : length + 1].flatten(),
                    reduction="sum",
                )
                (summed / targets).backward()
                loss += summed.item()
            clip = config.optimizer.clip or float("inf")
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            adamw.step()
            adamw.zero_grad()
            return loss / targets

        return step


def require_transformers() -> None:
    """Raise RunError where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise RunError("transformers is not installed: pip install '.[test]'")


@contextmanager
def exported(config: Config) -> Iterator[Path]:
    """The initial weights of `config`, as a checkpoint that exists within."""
    layout = build(config, Process(), Process().device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        save_checkpoint(layout, weights, read_companions(config))
        del layout
        yield weights


def load_theirs(weights: Path, config: Config) -> Any:
    """Their model of a checkpoint, in the type of our weights."""
    from transformers import AutoModelForCausalLM  # slow
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = PRECISIONS[config.precision.parameters].parameters
    model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype)
    if dtype == torch.float64:  # its grouped products have no kernel for it
        model.set_experts_implementation("eager")
    return model


def _adamw(model: Any, config: Config) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    o = config.optimizer
    return torch.optim.AdamW(
        groups, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
