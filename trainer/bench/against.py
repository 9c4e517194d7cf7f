"""Two ways to take the same training step, in turns in one process: ours as configured, and either
ours in another precision or that of transformers.

Both start from the same weights and read the same random tokens. What transformers does not train
is switched off on both sides: MTP modules, the balance loss and the moves of the router bias.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from parallel.ranks.process import Process
from trainer.bench.throughput import now, random_parts
from trainer.build.layout import Layout, build
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import read_companions
from trainer.config.schema import Config, PrecisionConfig
from trainer.errors import RunError
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

Other = Literal["transformers", "bfloat16", "float32", "float64"]
Step = Callable[[int], float]
"""Takes the number of a batch, trains on it, and returns its loss."""


@dataclass(frozen=True)
class Side:
    """One of the two. seconds: of each measured step. losses: of every step, warm-up included."""

    name: str
    seconds: list[float]
    losses: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def require_installed(other: Other) -> None:
    """Raise RunError where the other side needs a package that is not there."""
    if other == "transformers" and importlib.util.find_spec("transformers") is None:
        raise RunError("--against transformers: it is not installed: pip install '.[test]'")


def comparable(config: Config) -> Config:
    """`config` without what transformers does not train, at a constant learning rate; its weights
    are exported exactly."""
    model, moe = config.model, config.model.moe
    return replace(
        config,
        model=replace(
            model,
            mtp=replace(model.mtp, depth=0),
            moe=replace(moe, balance_alpha=0.0, bias_gamma=0.0),
        ),
        optimizer=replace(config.optimizer, warmup_steps=0, min_lr_ratio=1.0),
        checkpoint=replace(config.checkpoint, export_dtype="float32"),
    )


def measure(
    config: Config, other: Other, steps: int, warmup: int, progress: Callable[[int, int], None]
) -> tuple[Side, Side]:
    """Run `warmup` steps of each side, then `steps` that count, in turns: ours, theirs, theirs,
    ours and so on. config: as `comparable` gives it, for one process."""
    layout = build(config, Process(), Process().device(config.run.device))
    ours, theirs = _ours(layout), _other(layout, other)
    sides = Side(f"Tandem, {config.precision.parameters}", [], []), Side(other, [], [])
    turns = list(_turns((ours, sides[0]), (theirs, sides[1]), warmup + steps))
    for done, (batch, step, side) in enumerate(turns):
        progress(done, len(turns))
        start = now(layout.device)
        side.losses.append(step(batch))
        if batch >= warmup:
            side.seconds.append(now(layout.device) - start)
    progress(len(turns), len(turns))
    return sides


def _turns(
    a: tuple[Step, Side], b: tuple[Step, Side], batches: int
) -> Iterator[tuple[int, Step, Side]]:
    for batch in range(batches):
        for step, side in (a, b) if batch % 2 == 0 else (b, a):
            yield batch, step, side


def _other(layout: Layout, other: Other) -> Step:
    if other == "transformers":
        return _transformers(layout)
    precision = PrecisionConfig(other)
    return _ours(build(replace(layout.config, precision=precision), Process(), layout.device))


def _ours(layout: Layout) -> Step:
    trainer = Trainer(layout)
    return lambda batch: trainer.step(Progress(batch), random_parts(layout, batch).__getitem__).loss


def _transformers(layout: Layout) -> Step:
    """transformers' model with torch's clipping and fused AdamW, all in the type of our weights, as
    its users write the loop; experts by the kernel that it chooses itself."""
    config = layout.config
    model = _their_model(layout)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    o = config.optimizer
    adamw = torch.optim.AdamW(
        groups, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
    length = config.data.sequence_length
    targets = config.data.global_batch * length

    def step(batch: int) -> float:
        loss = 0.0
        for part in random_parts(layout, batch):
            tokens = part[TOKENS].to(layout.device)
            logits = model(tokens[:, :length], use_cache=False).logits
            summed = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens[:, 1 : length + 1].flatten(), reduction="sum"
            )
            (summed / targets).backward()
            loss += summed.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip or float("inf"))
        adamw.step()
        adamw.zero_grad()
        return loss / targets

    return step


def _their_model(layout: Layout) -> Any:
    from transformers import AutoModelForCausalLM  # slow
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(layout, Path(folder) / "weights", read_companions(layout.config))
        dtype = next(layout.part.parameters()).dtype
        model: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / "weights", dtype=dtype)
    model.to(layout.device)
    if dtype == torch.float64:  # its grouped products have no kernel for it
        model.set_experts_implementation("eager")
    return model.train()
