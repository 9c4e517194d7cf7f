"""Optimizers side by side: memory of their state, and what they take of a step."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor

from parallel.ranks.process import Process
from parallel.ranks.together import gather
from trainer.bench.throughput import now, random_parts
from trainer.build.layout import build
from trainer.config.schema import Config, OptimizerConfig, RecipeConfig
from trainer.optim.optimizer import Optimizer
from trainer.optim.state import Fragment
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

T = TypeVar("T")


@dataclass(frozen=True)
class Contender:
    """early: sums of gradients start while the pipeline cools down."""

    optimizer: OptimizerConfig
    early: bool = True


@dataclass(frozen=True)
class Cost:
    """What one contender takes, in seconds of the median step.

    state: bytes of moments or momentum on the rank that has most; masters are not counted. step:
    until the last rank is done. sum: standing still for the sums of the gradients, mean
    over ranks. update: the longest of a rank.
    """

    name: str
    zero: str
    early: bool
    state: int
    step: float
    sum: float
    update: float


@dataclass
class _Timed:
    """An optimizer, and how long it has been at it in each step."""

    of: Optimizer
    device: torch.device
    sums: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    @property
    def updates(self) -> int:
        return self.of.updates

    def zero(self) -> None:
        self.of.zero()

    def reduce(self) -> Tensor:
        return _timed(self.of.reduce, self.device, self.sums)

    def step(self, norm: Tensor, learning_rate: float) -> None:
        _timed(lambda: self.of.step(norm, learning_rate), self.device, self.steps)

    def state(self) -> list[Fragment]:
        return self.of.state()

    def loaded(self, updates: int) -> None:
        self.of.loaded(updates)


def contenders(config: Config) -> Iterator[Contender]:
    """Those that the config's type of numbers allows."""
    yield Contender(replace(config.optimizer, name="adamw", zero="off"), early=False)
    yield Contender(replace(config.optimizer, name="adamw", zero="off"))
    yield Contender(replace(config.optimizer, name="adamw", zero="shard"))
    narrow = config.precision.parameters != "float64" and config.optimizer.moments == "float32"
    if narrow and find_spec("deepspeed") is not None:
        yield Contender(replace(config.optimizer, name="adamw", zero="deepspeed"))
    yield Contender(replace(config.optimizer, name="muon", zero="off"))
    yield Contender(replace(config.optimizer, name="muon", zero="shard"))


def measure(config: Config, process: Process, steps: int, warmup: int) -> list[Cost]:
    """Steps of every contender in turns. Collective: the world's group exists if there is more than
    one process."""
    device = process.device(config.run.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    run = replace(config.run, steps=warmup + steps, tokens=None)
    config = replace(config, run=run, recipe=RecipeConfig())
    chosen = list(contenders(config))
    trainers: list[Trainer] = []
    timed: list[_Timed] = []
    whole: list[list[float]] = []
    for contender in chosen:
        layout = build(replace(config, optimizer=contender.optimizer), process, device)
        timed.append(_Timed(layout.optimizer, device))
        trainers.append(Trainer(replace(layout, optimizer=timed[-1])))
        whole.append([])
        for executor in trainers[-1].executors.values():
            if not contender.early:
                executor.on_completed = lambda stage: None
    for step in range(warmup + steps):
        for trainer, seconds in zip(trainers, whole):
            parts = random_parts(trainer.layout, step)
            gather(None)  # all ranks start together
            act = functools.partial(trainer.step, Progress(step), parts.__getitem__)
            _timed(act, device, seconds)
    return [
        _cost(contender, of, seconds, warmup)
        for contender, of, seconds in zip(chosen, timed, whole)
    ]


def _cost(contender: Contender, timed: _Timed, whole: list[float], warmup: int) -> Cost:
    own = [statistics.median(values[warmup:]) for values in (whole, timed.sums, timed.steps)]
    by_rank = gather((_state_bytes(timed), *own))
    state, step, summing, update = zip(*by_rank)
    return Cost(
        name=contender.optimizer.name,
        zero=contender.optimizer.zero,
        early=contender.early,
        state=max(state),
        step=max(step),
        sum=statistics.mean(summing),
        update=max(update),
    )


def _state_bytes(optimizer: Optimizer) -> int:
    return sum(f.values.nbytes for f in optimizer.state() if f.kind != "master")


def _timed(action: Callable[[], T], device: torch.device, seconds: list[float]) -> T:
    start = now(device)
    result = action()
    seconds.append(now(device) - start)
    return result
