"""Pipelines of layers without experts, run by our executor and by torch.distributed.pipelining: the
same schedules, weights, tokens and processes, step by step in turns. No optimizer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

from parallel.ranks.forked import run_ranks
from parallel.ranks.process import Process
from parallel.ranks.together import gather
from trainer.bench.comparisons import IN_BOTH, with_schedule
from trainer.bench.engine import engine_gradients, engine_step
from trainer.bench.results import (
    ROUNDING,
    Case,
    gradients_agree,
    losses_agree,
    require_same,
    side_of,
)
from trainer.bench.torch_side import TorchSide
from trainer.bench.turns import Step, Turns, take_turns, timed_together
from trainer.build.layout import build
from trainer.config.schema import Config
from trainer.io.count_progress import count_progress
from trainer.run.startup import keep_freed_memory


def against_torch_pipelining(name: str, config: Config, turns: Turns) -> list[Case]:
    """Start the ranks of config's pipeline; a case for each schedule that both have."""
    cases: list[Case] = run_ranks(config.mesh.pipeline, _measure, name, config, turns)
    return [require_same(case) for case in cases]


def _measure(process: Process, name: str, config: Config, turns: Turns) -> list[Case]:
    keep_freed_memory()  # as launch/train.py does
    device = process.device(config.run.device)
    layouts = [build(with_schedule(config, schedule), process, device) for schedule in IN_BOTH]
    theirs = [TorchSide(layout) for layout in layouts]
    steps: list[Step] = []
    for layout, side in zip(layouts, theirs):
        steps += [engine_step(layout), side.step]
    with count_progress("steps") if process.rank == 0 else nullcontext(_nothing) as progress:
        found = take_turns(steps, turns, timed_together, progress)
    allowed = ROUNDING[config.precision.parameters]
    tokens = config.data.global_batch * config.data.sequence_length
    cases = []
    for number, schedule in enumerate(IN_BOTH):
        ours, torchs = found[2 * number : 2 * number + 2]
        sides = side_of("Tandem", [ours], turns.warmup), side_of("torch", [torchs], turns.warmup)
        here = gradients_agree(
            engine_gradients(layouts[number]), theirs[number].gradients(), allowed
        )
        worst = max(gather(here.difference))
        agreements = losses_agree(*sides, allowed), replace(here, difference=worst)
        cases.append(Case(f"{name}, {schedule}", tokens, *sides, agreements))
    return cases


def _nothing(done: int, total: int) -> None:
    """What the other ranks tell nobody."""
