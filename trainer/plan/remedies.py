"""What would make a run fit into the memory of its GPUs: each found by planning it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from parallel.schedule.table import ScheduleError
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.plan.datasheets import Machine
from trainer.plan.memory import memory_by_rank
from trainer.plan.sweep import with_value

Changes: TypeAlias = tuple[tuple[str, Any], ...]
"""Keys, and the values that they get."""
SCHEDULES = ("1f1b", "zb-h1", "zbv", "dualpipev", "dualpipe")
MOST = 3
"""Changes that are tried together."""


@dataclass(frozen=True)
class Remedy:
    """options: as on the command line. total: bytes of the fullest rank, its margin included."""

    options: tuple[str, ...]
    total: int
    fits: bool


def remedies(config: Config, machine: Machine) -> list[Remedy]:
    """Every single change that helps, the least memory first; where none is enough, then the best
    of them together with others, until it fits or nothing helps. Nothing else is looked at: a
    change may make the run slower, which a plan of it says."""
    now = _total(config, machine)
    if now is None or now <= machine.memory:
        return []
    found: list[Remedy] = []
    chosen: Changes = ()
    for _ in range(MOST):
        better = _better(config, machine, chosen, now)
        kept = better[:1] if chosen else better
        found += [_remedy(changes, total, machine) for total, changes in kept]
        if not better or better[0][0] <= machine.memory:
            return found
        now, chosen = better[0]
    return found


def _better(
    config: Config, machine: Machine, chosen: Changes, most: int
) -> list[tuple[int, Changes]]:
    """What one more change gives, with those chosen, where it is less; the least first."""
    tried = [(*chosen, *more) for more in _changes(_changed(config, chosen))]
    totals = [(_total(_changed(config, changes), machine), changes) for changes in tried]
    return sorted(
        ((total, changes) for total, changes in totals if total is not None and total < most),
        key=lambda each: each[0],
    )


def _remedy(changes: Changes, total: int, machine: Machine) -> Remedy:
    options = tuple(f"--{key} {_text(value)}" for key, value in changes)
    return Remedy(options, total, total <= machine.memory)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _changes(config: Config) -> Iterator[Changes]:
    """What may need less memory, one at a time."""
    recompute = config.recompute
    if not recompute.layer:
        yield (("recompute.layer", True),)
        some = ("norm", "mla_up", "swiglu")
        if not all(getattr(recompute, name) for name in some):
            yield tuple((f"recompute.{name}", True) for name in some)
    if not (recompute.layer or recompute.offload):
        yield (("recompute.offload", True),)
    if config.precision.parameters == "bfloat16" and config.precision.linear == "same":
        yield (("precision.linear", "fp8"),)
    if config.optimizer.zero == "off":
        yield (("optimizer.zero", "shard"),)
    if not config.optimizer.offload and config.optimizer.name == "adamw":
        yield (("optimizer.offload", True),)
    if config.optimizer.moments == "float32":
        yield (("optimizer.moments", "bfloat16"),)
    for name in SCHEDULES:
        if name != config.pipeline.schedule:
            yield _with_split(config, name)
    mesh = mesh_of(config)
    if config.data.global_batch % (2 * config.pipeline.micro_batches * mesh.data) == 0:
        yield (("pipeline.micro_batches", 2 * config.pipeline.micro_batches),)
    if mesh.expert_data % 2 == 0:
        fewer = ("mesh.expert_data", mesh.expert_data // 2)
        yield (("mesh.expert", 2 * mesh.expert), fewer)
        yield (("mesh.pipeline", 2 * mesh.pipeline), fewer)


def _with_split(config: Config, schedule: str) -> Changes:
    """The schedule; layers spread evenly where it has another number of stages."""
    change = ("pipeline.schedule", schedule)
    split = config.pipeline.layers_per_stage
    try:
        stages = schedule_of(_changed(config, (change,))).stages
    except ScheduleError:
        return (change,)
    return (change,) if split is None or len(split) == stages else (
        change, ("pipeline.layers_per_stage", None)
    )  # fmt: skip


def _changed(config: Config, changes: Changes) -> Config:
    for key, value in changes:
        config = with_value(config, key, value)
    return config


def _total(config: Config, machine: Machine) -> int | None:
    """Of the fullest rank; None where the config cannot be."""
    try:
        validate(config, mesh_of(config).world)
        schedule = schedule_of(config)
    except (ConfigError, ScheduleError):
        return None
    return max(rank.total for rank in memory_by_rank(config, schedule, machine))
