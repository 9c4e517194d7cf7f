"""A run on several processes of this machine beside the same model on one process with as many
threads as there are cores. Whole short runs take turns (A B B A), as neither leaves room for the
other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from parallel.ranks.forked import run_ranks
from parallel.ranks.process import Process
from trainer.bench.results import Case, losses_agree, require_same, side_of
from trainer.bench.turns import OnProgress, Timed, Turns, timed, timed_together
from trainer.bench.ways import training_step
from trainer.build.layout import build
from trainer.config.derived import mesh_of
from trainer.config.schema import Config, MeshConfig
from trainer.run.local_ranks import cores, threads
from trainer.run.startup import keep_freed_memory


def against_one_process(
    name: str, config: Config, turns: Turns, runs: int, progress: OnProgress
) -> list[Case]:
    """runs: of each side."""
    world = mesh_of(config).world
    sides = [(config, threads(world)), (alone(config), cores())]
    found: list[list[list[Timed]]] = [[], []]
    for run in range(runs):
        for side in (0, 1) if run % 2 == 0 else (1, 0):
            progress(sum(map(len, found)), 2 * runs)
            found[side].append(_run(*sides[side], turns))
    progress(2 * runs, 2 * runs)
    names = [f"processes {mesh_of(of).world}, threads {count}" for of, count in sides]
    ours, theirs = (side_of(*pair, turns.warmup) for pair in zip(names, found))
    tokens = config.data.global_batch * config.data.sequence_length
    return [require_same(Case(name, tokens, ours, theirs, (losses_agree(ours, theirs, 1e-3),)))]


def alone(config: Config) -> Config:
    """The same step on one process."""
    pipeline = replace(config.pipeline, schedule="1f1b", schedule_file=None, layers_per_stage=None)
    return replace(config, mesh=MeshConfig(), pipeline=pipeline)


def _run(config: Config, count: int, turns: Turns) -> list[Timed]:
    found: list[Timed] = run_ranks(mesh_of(config).world, _rank, config, count, turns)
    return found


def _rank(process: Process, config: Config, count: int, turns: Turns) -> list[Timed]:
    keep_freed_memory()  # as launch/train.py does
    torch.set_num_threads(count)
    layout = build(config, process, torch.device("cpu"))
    step = training_step(layout)
    together = process.world > 1
    time_step = timed_together if together else partial(timed, device=layout.device)
    return [time_step(step, batch) for batch in range(turns.each)]
