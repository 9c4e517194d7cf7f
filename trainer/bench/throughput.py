"""Measuring steps: how long they are, and where the time of their collectives goes.

Real optimizer steps on random tokens. With both modes, steps with overlap on and off alternate
(on, off, off, on, ...) in one run and get the same tokens, so that what drifts on the machine, or
in the routing as the weights move, weighs on both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parallel.ranks.process import Process
from parallel.ranks.together import gather
from parallel.tape.recorder import Event, EventLog, Silence
from trainer.bench.exchange_times import (
    Mode,
    StepTimes,
    Window,
    account,
    hidden_share,
    latest_starts,
    mean,
)
from trainer.build.layout import Layout, build
from trainer.config.schema import Config, RecipeConfig
from trainer.model.stage import MicroBatch
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer


@dataclass(frozen=True)
class Trial:
    """What to measure. steps: of each mode. warmup: steps of each mode that are not counted."""

    modes: tuple[Mode, ...]
    steps: int
    warmup: int

    def order(self) -> Iterator[tuple[int, Mode]]:
        """(batch, mode) of every step; negative batches are the warm-up."""
        for batch in range(-self.warmup, self.steps):
            turn = self.modes if batch % 2 == 0 else self.modes[::-1]
            yield from ((batch, mode) for mode in turn)


@dataclass(frozen=True)
class RankSteps:
    """What one rank measured: its windows in order, its events, and each step's load imbalance."""

    windows: list[Window]
    events: list[Event]
    loads: list[float]


@dataclass(frozen=True)
class Measured:
    """One mode, over all ranks.

    step_seconds: of each step, on the rank on which it took longest. load_max: the largest load of
    an expert over the mean load, on the worst MoE layer; mean over steps. times: mean over ranks,
    None on CUDA, where the host clock sees launches and not kernels; by_rank is then empty.
    """

    step_seconds: list[float]
    tokens_per_step: int
    load_max: float
    times: StepTimes | None
    by_rank: list[StepTimes]

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.median_seconds


@dataclass(frozen=True)
class Comparison:
    """Overlap on against off. speed_up: median step off over on.

    pairs_hidden: 1 - waited(on) / waited(off) of the all-to-alls in overlapped pairs.
    all_hidden: the same of all all-to-alls. None where nothing was waited for.
    """

    speed_up: float
    pairs_hidden: float | None
    all_hidden: float | None


def measure(config: Config, process: Process, trial: Trial) -> dict[Mode, Measured] | None:
    """Run the steps on this rank of the world; the result on rank 0, None on the others.

    Collective: the world's group exists if there is more than one process.
    """
    device = process.device(config.run.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    total = len(trial.modes) * (trial.steps + trial.warmup)
    run = replace(config.run, steps=total, tokens=None)
    config = replace(config, run=run, recipe=RecipeConfig())  # every step is as large as the last
    layout = build(config, process, device)
    mine = run_steps(layout, trial)
    times: dict[Mode, StepTimes] = {}
    if device.type == "cpu":
        latest = latest_starts(process, layout.mesh, mine.events)
        times = {mode: account(mine.events, latest, mine.windows, mode) for mode in trial.modes}
    seconds = gather([w.end - w.start for w in mine.windows])
    ranks = gather(times)
    if process.rank != 0:
        return None
    tokens = config.data.global_batch * config.data.sequence_length
    return {
        mode: _summary(mode, mine, seconds, [rank[mode] for rank in ranks if rank], tokens)
        for mode in trial.modes
    }


def run_steps(layout: Layout, trial: Trial) -> RankSteps:
    """The steps of `trial` in order, on one rank."""
    log = EventLog()
    # On CUDA the host clock says nothing of kernels, and noting costs time.
    trainer = Trainer(layout, log if layout.device.type == "cpu" else Silence())
    windows: list[Window] = []
    loads: list[float] = []
    for step, (batch, mode) in enumerate(trial.order()):
        parts = random_parts(layout, batch + trial.warmup)
        trainer.set_overlap(mode == "on")
        start = now(layout.device)
        metrics = trainer.step(Progress(step), parts.__getitem__)
        if batch >= 0:
            windows.append(Window(mode, start, now(layout.device)))
            loads.append(metrics.load_max)
    log.settle()
    return RankSteps(windows, log.events, loads)


def random_parts(layout: Layout, batch: int) -> list[MicroBatch]:
    """The micro-batches of this data rank, of `random_tokens`."""
    ours = random_tokens(layout.config, batch).chunk(layout.mesh.data)[layout.data_rank]
    return [{TOKENS: part} for part in ours.split(layout.sequences)]


def random_tokens(config: Config, batch: int) -> Tensor:
    """The windows of a global batch: uniform tokens, seeded by its number."""
    shape = (
        config.data.global_batch,
        config.data.sequence_length + 1 + config.model.mtp.depth,
    )
    generator = torch.Generator().manual_seed(config.run.seed * 1_000_003 + batch)
    return torch.randint(0, config.model.vocab_size, shape, generator=generator)


def compare(measured: dict[Mode, Measured]) -> Comparison | None:
    """None unless both modes were measured."""
    if set(measured) != {"on", "off"}:
        return None
    on, off = measured["on"], measured["off"]
    pairs = everything = None
    if on.times is not None and off.times is not None:
        pairs = hidden_share(on.times.total("pairs").waited, off.times.total("pairs").waited)
        everything = hidden_share(
            on.times.total("pairs", "lone").waited, off.times.total("pairs", "lone").waited
        )
    return Comparison(off.median_seconds / on.median_seconds, pairs, everything)


def _summary(
    mode: Mode, mine: RankSteps, seconds: list[list[float]], by_rank: list[StepTimes], tokens: int
) -> Measured:
    chosen = [i for i, window in enumerate(mine.windows) if window.mode == mode]
    return Measured(
        step_seconds=[max(rank[i] for rank in seconds) for i in chosen],
        tokens_per_step=tokens,
        load_max=statistics.mean(mine.loads[i] for i in chosen),
        times=mean(by_rank) if by_rank else None,
        by_rank=by_rank,
    )


def now(device: torch.device) -> float:
    """Host clock in seconds, once the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
