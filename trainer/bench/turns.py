"""Taking turns: what is compared runs step by step in one run, so that what drifts on the machine
weighs on all of it alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from parallel.ranks.together import gather, start_together
from trainer.bench.throughput import now

Step = Callable[[int], Any]
"""Does the work of the step with this number, and returns what it gave."""
OnProgress = Callable[[int, int], None]
"""Is told (done, total) again and again."""


@dataclass(frozen=True)
class Turns:
    """warmup: steps of each side before the `steps` that count."""

    steps: int
    warmup: int

    @property
    def each(self) -> int:
        return self.warmup + self.steps


@dataclass(frozen=True)
class Timed:
    """What a step gave, its seconds by the clock, and those of processors."""

    result: Any
    wall: float
    cpu: float


def timed(step: Step, number: int, device: torch.device) -> Timed:
    """Take a step of this process alone."""
    start, cpu = now(device), time.process_time()
    result = step(number)
    return Timed(result, now(device) - start, time.process_time() - cpu)


def timed_together(step: Step, number: int) -> Timed:
    """Take a step on all ranks of the world, from one moment on until the last is done. The result
    is the largest of a rank, as those without the last stage have no loss to give; processor time
    is the sum."""
    start, cpu = start_together(), time.process_time()
    result = step(number)
    cpu, wall = time.process_time() - cpu, time.monotonic() - start
    results, walls, cpus = zip(*gather((result, wall, cpu)))
    return Timed(max(results), max(walls), sum(cpus))


def take_turns(
    sides: Sequence[Step],
    turns: Turns,
    time_step: Callable[[Step, int], Timed],
    progress: OnProgress,
) -> list[list[Timed]]:
    """All steps of each side, warm-up first; within a turn in order, in the next from the end."""
    found: list[list[Timed]] = [[] for _ in sides]
    total = turns.each * len(sides)
    for number in range(turns.each):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            progress(sum(map(len, found)), total)
            found[side].append(time_step(sides[side], number))
    progress(total, total)
    return found
