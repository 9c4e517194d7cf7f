"""What a benchmark is asked for: which comparison, of which configs. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trainer.bench.sizes import SIZES, dense, v3_part
from trainer.bench.step_options import add_step_options, require_steps
from trainer.config.derived import mesh_of
from trainer.config.parse import parse
from trainer.config.schema import Config, ModelConfig, PrecisionConfig
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.run.local_ranks import require_room

PRECISIONS: Mapping[str, PrecisionConfig] = {
    "bfloat16": PrecisionConfig("bfloat16"),
    "float32": PrecisionConfig("float32"),
    "float64": PrecisionConfig("float64"),
}
READS: Mapping[str, frozenset[str]] = {
    "transformers": frozenset({"config", "size", "memory"}),
    **dict.fromkeys(PRECISIONS, frozenset({"config", "size"})),
    "one-process": frozenset({"config", "runs"}),
    "needed-bytes": frozenset(),
    "plain": frozenset({"width"}),
    "torch-pipelining": frozenset({"width", "ranks", "micro_batches"}),
}
"""By what is compared with, the options that it reads; all read steps, keys of a config, json."""
Schedule = Literal["1f1b", "interleaved", "zbv", "dualpipev"]
IN_BOTH: tuple[Schedule, ...] = ("1f1b", "interleaved", "zbv", "dualpipev")
"""The schedules that torch.distributed.pipelining has, too."""
SEVERAL_PROCESSES = frozenset({"torch-pipelining", "one-process", "needed-bytes"})
USUAL_SIZE = "1.7M"
USUAL_WIDTHS = {"plain": (64, 128, 256), "torch-pipelining": (256,)}
USUAL_RUNS, MOST_RUNS = 2, 1000
USUAL_RANKS, USUAL_MICRO_BATCHES = {"plain": 1, "torch-pipelining": 4}, 16


@dataclass(frozen=True)
class Asked:
    """cases: by name, what is compared. memory: whether to measure that, too. runs: of each side,
    where whole runs take turns."""

    against: str
    cases: Mapping[str, Config]
    steps: int
    warmup: int
    memory: bool
    runs: int
    json: bool


def add_options(parser: Any) -> None:
    """What the command adds to the keys of a config."""
    add = parser.add_argument
    add("--against", choices=list(READS), default="transformers", help="The other side.")
    sizes = f"Models to compare on ({USUAL_SIZE}); keys of a config change them."
    add("--size", nargs="+", choices=list(SIZES), help=sizes)
    widths = "Widths of the model without experts: plain (64 128 256), torch-pipelining (256)."
    add("--width", nargs="+", type=int, metavar="N", help=widths)
    ranks = "torch-pipelining: pipeline ranks, a process each (4)."
    add("--ranks", type=int, metavar="N", help=ranks)
    count = "torch-pipelining: micro-batches of a step (16)."
    add("--micro-batches", type=int, metavar="N", help=count)
    runs = "one-process: runs of each side, which take turns (2)."
    add("--runs", type=int, metavar="N", help=runs)
    memory = "Measure peak memory, each side in a process of its own: all kept, and recomputed."
    add("--memory", action="store_true", default=None, help=memory)
    add_step_options(parser, steps=10, of="side")
    add("--json", action="store_true", help="Print one JSON object instead of a table.")


def read(parser: Any, arguments: Sequence[str]) -> Asked:
    """Raises ConfigError for what cannot be compared."""
    _, given = parse(parser, arguments, lambda given: next(iter(_bases(given).values())))
    bases = _bases(given)
    _require_effect(given)
    require_steps(given.steps, given.warmup)
    if given.runs is not None and not 1 <= given.runs <= MOST_RUNS:
        raise ConfigError(f"--runs must be between 1 and {MOST_RUNS}, got {given.runs}")
    cases = {name: parse(parser, arguments, _always(base))[0] for name, base in bases.items()}
    for case in cases.values():
        _require_fit(given.against, case)
    return Asked(
        against=given.against,
        cases=cases,
        steps=given.steps,
        warmup=given.warmup,
        memory=bool(given.memory),
        runs=_or_usual(given.runs, USUAL_RUNS),
        json=given.json,
    )


def _bases(given: Any) -> dict[str, Config]:
    """By the name of its case, each config that keys change."""
    if given.get("config"):
        return {Path(given.get("config")[0]).stem: Config()}
    against = given.get("against")
    if against in USUAL_WIDTHS:
        ranks = _or_usual(given.get("ranks"), USUAL_RANKS[against])
        count = _or_usual(given.get("micro_batches"), USUAL_MICRO_BATCHES)
        widths = _or_usual(given.get("width"), USUAL_WIDTHS[against])
        return {f"width {width}": dense(width, ranks, count) for width in widths}
    if against == "needed-bytes":
        return {"V3": v3_part()}
    return {name: SIZES[name].config() for name in _or_usual(given.get("size"), [USUAL_SIZE])}


def _or_usual(given: Any, usual: Any) -> Any:
    return usual if given is None else given


def _always(config: Config) -> Callable[[Any], Config]:
    return lambda given: config


def _require_effect(given: Any) -> None:
    """Raise ConfigError for an option that this comparison does not read, and for two that say the
    same."""
    for option in set().union(*READS.values()) - READS[given.against]:
        if given[option] is not None:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} has no effect with --against {given.against}")
    if given.config and given.size:
        raise ConfigError("--size is a config: leave out --config, or --size")


def _require_fit(against: str, config: Config) -> None:
    """Raise ConfigError for a config that this comparison cannot run."""
    mesh = mesh_of(config)
    if against in USUAL_WIDTHS:
        _require_dense(config.model)
    if against in SEVERAL_PROCESSES:
        require_room("benchmark", mesh.world)
        if mesh.world == 1:
            more = "--ranks" if against == "torch-pipelining" else "--config configs/cpu_4proc.yaml"
            raise ConfigError(f"{against} needs a config of several processes: give {more}")
    elif mesh.world != 1:
        raise ConfigError("mesh must be 1 x 1 x 1: the other side has one process")
    if against == "needed-bytes" and mesh.pipeline != 1:
        raise ConfigError("needed-bytes measures one layer: mesh.pipeline must be 1")
    if against != "torch-pipelining":
        return validate(config, mesh.world)
    if mesh.data != 1:
        raise ConfigError(
            "torch-pipelining has one pipeline: mesh.expert and expert_data must be 1"
        )
    for schedule in IN_BOTH:
        validate(with_schedule(config, schedule), mesh.world)


def with_schedule(config: Config, schedule: Schedule) -> Config:
    return replace(config, pipeline=replace(config.pipeline, schedule=schedule))


def _require_dense(model: ModelConfig) -> None:
    """Raise ConfigError for what trainer/bench/plain_model.py has not."""
    if model.dense_layers != model.layers:
        raise ConfigError(
            f"plain modules have no experts: set model.dense_layers to model.layers, {model.layers}"
        )
    if model.attention.q_lora_rank is None:
        raise ConfigError("plain modules have a query latent: give model.attention.q_lora_rank")
    if model.mtp.depth:
        raise ConfigError("plain modules have no MTP: leave out --model.mtp.depth")
