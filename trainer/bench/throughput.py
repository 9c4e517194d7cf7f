"""Measuring steps: how long they are, and where the time of their parts and collectives goes.

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

from parallel.expert.router import Choose
from parallel.ranks.process import Process
from parallel.ranks.together import gather
from parallel.tape.recorder import Both, Event, EventLog
from trainer.bench.device_events import DeviceEventLog
from trainer.bench.exchange_times import (
    Mode,
    StepTimes,
    Window,
    account,
    hidden_share,
    latest_starts,
    mean,
)
from trainer.bench.stamps import Arrivals, stamp
from trainer.bench.step_parts import PartsClock, RankStep, mean_step
from trainer.build.layout import Layout, build
from trainer.config.schema import Config, RecipeConfig
from trainer.model.stage import MicroBatch
from trainer.objective.pretraining import DOCUMENTS, TOKENS
from trainer.plan.step_time import StepParts
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
    """What one rank measured: its windows in order, its events, and each step's load imbalance and
    parts."""

    windows: list[Window]
    events: list[Event]
    loads: list[float]
    steps: list[RankStep]


@dataclass(frozen=True)
class Measured:
    """One mode, over all ranks.

    step_seconds: of each step, on the rank on which it took longest. load_max: the largest load of
    an expert over the mean load, on the worst MoE layer; mean over steps. parts: mean over ranks
    and steps. times: mean over ranks.
    """

    step_seconds: list[float]
    load_max: float
    parts: StepParts
    times: StepTimes
    by_rank: list[StepTimes]

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.step_seconds)


@dataclass(frozen=True)
class Comparison:
    """Overlap on against off. speed_up: median step off over on.

    pairs_hidden: 1 - waited(on) / waited(off) of the all-to-alls in overlapped pairs.
    all_hidden: the same of all all-to-alls. None where nothing was waited for.
    """

    speed_up: float
    pairs_hidden: float | None
    all_hidden: float | None


def prepared(config: Config, process: Process, trial: Trial, choose: Choose) -> Layout:
    """What this rank measures steps of, with overlap as in the first mode. choose: which experts a
    token goes to. Collective."""
    device = process.device(config.run.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    total = len(trial.modes) * (trial.steps + trial.warmup)
    run = replace(config.run, steps=total, tokens=None)
    pipeline = replace(config.pipeline, overlap=trial.modes[0] == "on")
    every_step_as_large = RecipeConfig()
    config = replace(config, run=run, pipeline=pipeline, recipe=every_step_as_large)
    return build(config, process, device, choose=choose)


def measure(layout: Layout, trial: Trial) -> dict[Mode, Measured] | None:
    """Run the steps on this rank of the world; the result on rank 0, None on the others.

    Collective: the world's group exists if there is more than one process.
    """
    process = layout.process
    mine = run_steps(layout, trial)
    latest = latest_starts(process, layout.mesh, mine.events)
    times = {mode: account(mine.events, latest, mine.windows, mode) for mode in trial.modes}
    seconds = gather([w.end - w.start for w in mine.windows])
    ranks, steps = gather(times), gather(mine.steps)
    if process.rank != 0:
        return None
    one_clock = process.local_world == process.world
    measured = {}
    for mode in trial.modes:
        chosen = [i for i, window in enumerate(mine.windows) if window.mode == mode]
        by_rank = [rank[mode] for rank in ranks]
        measured[mode] = Measured(
            step_seconds=[max(rank[i] for rank in seconds) for i in chosen],
            load_max=statistics.mean(mine.loads[i] for i in chosen),
            parts=mean_step([[rank[i] for i in chosen] for rank in steps], one_clock),
            times=mean(by_rank),
            by_rank=by_rank,
        )
    return measured


def run_steps(layout: Layout, trial: Trial) -> RankSteps:
    """The steps of `trial` in order, on one rank."""
    device = layout.device
    log, on_device, clock = EventLog(), _device_log(device), PartsClock(lambda: stamp(device))
    trainer = Trainer(layout, Both(on_device or log, clock))
    for executor in trainer.executors.values():
        executor.on_item = clock.item
    found = RankSteps([], log.events, [], [])
    for step, (batch, mode) in enumerate(trial.order()):
        parts = random_parts(layout, batch + trial.warmup)
        trainer.set_overlap(mode == "on")
        start = now(device)
        clock.start()
        if on_device is not None:
            on_device.start()
        metrics = trainer.step(Progress(step), parts.__getitem__)
        clock.stop()
        end = now(device)
        if on_device is not None:
            found.events.extend(on_device.events(start))
        if batch >= 0:
            found.windows.append(Window(mode, start, end))
            found.loads.append(metrics.load_max)
            found.steps.append(clock.step(start))
    log.settle()
    return found


def _device_log(device: torch.device) -> DeviceEventLog | None:
    """None on a CPU, where the host's clock sees all."""
    if device.type != "cuda":
        return None
    return DeviceEventLog(lambda: stamp(device), Arrivals(device).stamp)


def random_parts(layout: Layout, batch: int) -> list[MicroBatch]:
    """The micro-batches of this data rank, of `random_tokens`."""
    ours = random_tokens(layout.config, batch).chunk(layout.mesh.parts)[layout.batch_part]
    parts = ours.split(layout.sequences)
    if not layout.config.data.mask_documents:
        return [{TOKENS: part} for part in parts]
    # A document for each 256 tokens: some kilobytes of text.
    numbers = (torch.arange(ours.shape[1]) // 256).expand_as(ours).split(layout.sequences)
    return [{TOKENS: part, DOCUMENTS: number} for part, number in zip(parts, numbers)]


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
    pairs = hidden_share(on.times.total("pairs").waited, off.times.total("pairs").waited)
    everything = hidden_share(
        on.times.total("pairs", "lone").waited, off.times.total("pairs", "lone").waited
    )
    return Comparison(off.median_seconds / on.median_seconds, pairs, everything)


def now(device: torch.device) -> float:
    """Host clock in seconds, once the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
