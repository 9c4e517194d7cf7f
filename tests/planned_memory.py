"""The memory of real steps on CPU processes beside the plan of the same config.

    python tests/planned_memory.py

measured: the most bytes that torch's allocator had given out at once in a rank's second step, by
the allocations and releases that torch.profiler records, those inside of kernels included.
resident: by how much the rank's highest resident set is above that before the model was made; it
has what oneDNN, MKL, gloo and malloc keep, too. Largest rank. Linux only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.profiler import ProfilerActivity, profile

from parallel.ranks.process import Process
from tests.distributed import run_world
from trainer.bench.balanced_routing import choose_balanced
from trainer.bench.throughput import random_parts
from trainer.build.layout import build
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.plan.datasheets import machine_of
from trainer.plan.memory import memory_by_rank
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

MODEL = (
    "--model.dim", "256", "--model.dense_dim", "768", "--model.layers", "6",
    "--model.moe.expert_dim", "256", "--data.sequence_length", "256",
)  # fmt: skip
"""Of all cases: wide enough that tensors are what takes memory."""
CASES: dict[str, tuple[str, ...]] = {
    "1f1b": ("--pipeline.schedule=1f1b", "--model.mtp.depth=0"),
    "1f1b, MTP, ZeRO": ("--pipeline.schedule=1f1b", "--optimizer.zero=shard"),
    "dualpipe, MTP": ("--pipeline.schedule=dualpipe",),
    "dualpipev, MTP, recompute norm, mla_up, swiglu": (
        "--pipeline.schedule=dualpipev",
        *(f"--recompute.{what}=true" for what in ("norm", "mla_up", "swiglu")),
    ),
    "dualpipev, MTP, recompute layer, ZeRO": (
        "--pipeline.schedule=dualpipev", "--recompute.layer=true", "--optimizer.zero=shard",
    ),
    "zbv, MTP, bfloat16, ZeRO": (
        "--pipeline.schedule=zbv", "--precision.parameters=bfloat16", "--optimizer.zero=shard",
        "--optimizer.moments=bfloat16",
    ),
    "zbv, recompute layer, Muon": (
        "--pipeline.schedule=zbv", "--recompute.layer=true", "--optimizer.name=muon",
        "--model.mtp.depth=0",
    ),
    "dualpipe, MTP, all experts on each rank": (
        "--pipeline.schedule=dualpipe", "--mesh.expert=1", "--mesh.expert_data=2",
    ),
}  # fmt: skip


def case(name: str) -> Config:
    options = ("--config", "configs/cpu_4proc.yaml", *MODEL, "--run.device", "cpu", *CASES[name])
    return parse(config_parser("", "", ""), options)[0]


def planned(config: Config) -> list[int]:
    """By pipeline rank."""
    machine = machine_of(config.cluster)
    return [rank.needed for rank in memory_by_rank(config, schedule_of(config), machine)]


def measured(config: Config, resident: bool = False) -> list[int]:
    """By pipeline rank, of the rank of each place that took most. resident: see above."""
    mesh = mesh_of(config)
    ranks = run_world(mesh.world, _resident_on if resident else _allocated_on, config)
    return [max(ranks[start : start + mesh.data]) for start in range(0, mesh.world, mesh.data)]


def _allocated_on(process: Process, config: Config) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _two_steps(process, config)
    return _peak(profiler)


def _resident_on(process: Process, config: Config) -> int:
    before = _resident("VmRSS")
    _two_steps(process, config)
    return _resident("VmHWM") - before


def _two_steps(process: Process, config: Config) -> None:
    torch.set_num_threads(1)
    layout = build(config, process, torch.device("cpu"), choose=choose_balanced)
    trainer = Trainer(layout)
    for batch in range(2):
        if batch:
            torch.empty(_MARK, dtype=torch.uint8)
        parts = random_parts(layout, batch)
        trainer.step(Progress(), parts.__getitem__)


_MARK = 12_345_679  # bytes of an allocation that says that the second step starts


def _peak(profiler: profile) -> int:
    results: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        if event.nbytes() == _MARK:
            peak = 0
        elif event.nbytes() != -_MARK:
            peak = max(peak, now)
    return peak


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this needs Linux")


def main() -> None:
    print(
        "| case | planned MiB | measured MiB | difference | resident MiB |\n|---|---|---|---|---|"
    )
    for name in CASES:
        config = case(name)
        plan, real, resident = planned(config), measured(config), measured(config, resident=True)
        rank = plan.index(max(plan))
        mib = [each[rank] / 2**20 for each in (plan, real, resident)]
        print(
            f"| {name} | {mib[0]:.1f} | {mib[1]:.1f} | {mib[0] / mib[1] - 1:+.1%} | {mib[2]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
