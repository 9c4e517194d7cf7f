"""What Tandem can be compared with: the options that each comparison reads, its usual sizes, and
what a config must be like for it. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from trainer.config.derived import mesh_of
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
    **dict.fromkeys((*PRECISIONS, "compiled"), frozenset({"config", "size"})),
    "plain": frozenset({"width"}),
    "torch-pipelining": frozenset({"width", "ranks", "micro_batches"}),
    "one-process": frozenset({"config", "runs"}),
    "generate": frozenset({"config", "size", "batch", "prompt_tokens", "new_tokens"}),
    "needed-bytes": frozenset(),
}
"""By what Tandem is compared with, the options that it reads beside those that all do."""
USUAL_WIDTHS: Mapping[str, tuple[int, ...]] = {
    "plain": (64, 128, 256),
    "torch-pipelining": (256,),
}
"""Of the comparisons of layers without experts."""
USUAL_RANKS: Mapping[str, int] = {"plain": 1, "torch-pipelining": 4}
SEVERAL_PROCESSES = frozenset({"torch-pipelining", "one-process", "needed-bytes"})

Schedule = Literal["1f1b", "interleaved", "zbv", "dualpipev"]
IN_BOTH: tuple[Schedule, ...] = ("1f1b", "interleaved", "zbv", "dualpipev")
"""The schedules that torch.distributed.pipelining has, too."""


def with_schedule(config: Config, schedule: Schedule) -> Config:
    return replace(config, pipeline=replace(config.pipeline, schedule=schedule))


def compiled(config: Config) -> Config:
    return replace(config, run=replace(config.run, compile=True))


def require_fit(against: str, config: Config) -> None:
    """Raise ConfigError for a config that this comparison cannot run."""
    mesh = mesh_of(config)
    if against in USUAL_WIDTHS:
        _require_dense(config.model)
    if against == "generate" and config.precision.parameters == "bfloat16":
        raise ConfigError("generate compares texts in float32 or float64: in bfloat16 they differ")
    if against == "compiled":
        if config.run.compile:
            raise ConfigError("compiled is the other side: leave out --run.compile")
        validate(compiled(config), mesh.world)
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
