"""Ways to take a training step: what a side of a comparison is made from, here or in a process of
its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from parallel.ranks.process import Process
from trainer.bench.throughput import random_parts
from trainer.bench.turns import Step
from trainer.build.layout import Layout, build
from trainer.config.schema import Config
from trainer.recipe.progress import Progress
from trainer.run.startup import keep_freed_memory
from trainer.run.step import Trainer


class Way(Protocol):
    """Can be pickled: nothing has been built yet."""

    @property
    def name(self) -> str:
        """What the side is called."""

    def start(self) -> Step:
        """Build the model; a step trains it on a batch of random tokens and returns the loss."""


@dataclass(frozen=True)
class Ours:
    """Tandem on one process, as configured."""

    name: str
    config: Config

    def start(self) -> Step:
        keep_freed_memory()  # as launch/train.py does
        process = Process()
        layout = build(self.config, process, process.device(self.config.run.device))
        return training_step(layout)


def training_step(layout: Layout) -> Step:
    """Trains the rank's part of `layout` on a batch of random tokens; gives the loss."""
    trainer = Trainer(layout)

    def step(batch: int) -> float:
        parts = random_parts(layout, batch)
        return trainer.step(Progress(batch), parts.__getitem__).loss

    return step
