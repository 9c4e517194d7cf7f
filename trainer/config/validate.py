"""What a config must satisfy before anything starts: each violation is one line that names the key
and what would be right."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from parallel.schedule.table import ScheduleError
from trainer.checkpoint.hf.architecture import (
    CONFIG_FILE,
    differences,
    model_from_hf,
    read_hf_config,
)
from trainer.checkpoint.hf.config_json import not_representable
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config, ModelConfig
from trainer.errors import ConfigError


def validate(config: Config, world_size: int) -> None:
    """Raise ConfigError for the first thing that cannot work with `world_size` processes."""
    for problem in _problems(config, world_size):
        raise ConfigError(problem)


def _problems(config: Config, world_size: int) -> Iterator[str]:
    yield from _out_of_range(config)
    yield from _mesh_problems(config, world_size)
    yield from model_problems(config.model)
    if config.model.vocab_size < 257 and not (config.data.tokenizer or config.model.init_from):
        yield f"model.vocab_size must be at least 257 for bytes, got {config.model.vocab_size}"
    yield from _checkpoint_problems(config)
    yield from _batch_problems(config)  # before the schedule, whose table may be vast
    yield from _pipeline_problems(config)


_POSITIVE = [
    "run.steps",
    "run.timeout",
    "run.io_timeout",
    "mesh.pipeline",
    "mesh.expert",
    "mesh.expert_data",
    "pipeline.micro_batches",
    "model.vocab_size",
    "model.layers",
    "model.dim",
    "model.dense_dim",
    "model.norm_eps",
    "model.init_std",
    "model.attention.heads",
    "model.attention.q_lora_rank",
    "model.attention.kv_lora_rank",
    "model.attention.nope_head_dim",
    "model.attention.rope_head_dim",
    "model.attention.v_head_dim",
    "model.attention.yarn.original_length",
    "model.attention.yarn.beta_fast",
    "model.attention.yarn.beta_slow",
    "model.moe.experts",
    "model.moe.top_k",
    "model.moe.groups",
    "model.moe.top_groups",
    "model.moe.expert_dim",
    "model.moe.scale",
    "data.sequence_length",
    "data.global_batch",
    "optimizer.lr",
    "optimizer.eps",
    "metrics.log_every",
    "metrics.eval_sequences",
    "metrics.sample_tokens",
]
_NOT_NEGATIVE = [
    "run.seed",
    "model.dense_layers",
    "model.moe.shared_experts",
    "model.moe.bias_gamma",
    "model.moe.balance_alpha",
    "model.mtp.weight",
    "model.attention.yarn.mscale",
    "model.attention.yarn.mscale_all_dim",
    "optimizer.min_lr_ratio",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip",
    "metrics.eval_every",
    "metrics.loads_every",
    "metrics.sample_every",
]


def _value(config: Config, key: str) -> float | None:
    return functools.reduce(getattr, key.split("."), config)  # type: ignore[return-value]


def _out_of_range(config: Config) -> Iterator[str]:
    for key in _POSITIVE:
        value = _value(config, key)
        if value is not None and not value > 0:
            yield f"{key} must be more than 0, got {value}"
    for key in _NOT_NEGATIVE:
        value = _value(config, key)
        if value is not None and not value >= 0:
            yield f"{key} must be 0 or more, got {value}"
    if not 0 < config.data.validation_fraction < 1:
        yield (
            "data.validation_fraction must lie between 0 and 1, got "
            f"{config.data.validation_fraction}"
        )
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        yield f"optimizer.betas must each lie in [0, 1), got {list(config.optimizer.betas)}"
    if not re.fullmatch(r"[\w.+=,@-]{1,100}", config.run.name) or set(config.run.name) == {"."}:
        yield (
            "run.name must be the name of a folder, of letters, digits and _.+=,@- and at most 100 "
            f"long, got {config.run.name!r}"
        )
    if config.run.seed >= 2**63:
        yield f"run.seed must be less than 2^63, got {config.run.seed}"
    for key in ("run.timeout", "run.io_timeout"):
        if (seconds := _value(config, key)) is not None and seconds > 1e6:
            yield f"{key} must be at most 1e6 seconds, got {seconds}"
    if config.optimizer.min_lr_ratio > 1:
        yield f"optimizer.min_lr_ratio must be at most 1, got {config.optimizer.min_lr_ratio}"


def _mesh_problems(config: Config, world_size: int) -> Iterator[str]:
    mesh = mesh_of(config)
    if mesh.world != world_size:
        yield (
            f"mesh.pipeline x mesh.expert_data x mesh.expert = {mesh.pipeline} x "
            f"{mesh.expert_data} x {mesh.expert} = {mesh.world} processes, but {world_size} "
            f"{'was' if world_size == 1 else 'were'} started: launch with "
            f"`torchrun --nproc-per-node {mesh.world}`, or change mesh"
        )
    experts = config.model.moe.experts
    if experts % mesh.expert:
        yield (
            f"model.moe.experts = {experts} cannot be divided among mesh.expert = {mesh.expert} "
            f"ranks: set model.moe.experts to a multiple of {mesh.expert}"
        )


def model_problems(model: ModelConfig) -> Iterator[str]:
    """What is wrong with an architecture, each problem one line."""
    attention, moe = model.attention, model.moe
    if attention.rope_head_dim % 2:
        yield f"model.attention.rope_head_dim must be even, got {attention.rope_head_dim}"
    if not attention.rope_theta > 1:
        yield f"model.attention.rope_theta must be more than 1, got {attention.rope_theta}"
    if not attention.yarn.factor >= 1:
        yield f"model.attention.yarn.factor must be 1 (off) or more, got {attention.yarn.factor}"
    if not 0 <= model.mtp.depth <= 2:
        yield f"model.mtp.depth must be 0, 1 or 2, got {model.mtp.depth}"
    if model.dense_layers > model.layers:
        yield (
            f"model.dense_layers = {model.dense_layers} is more than model.layers = {model.layers}"
        )
    if moe.experts % moe.groups:
        yield (
            f"model.moe.experts = {moe.experts} cannot be divided into model.moe.groups = "
            f"{moe.groups} equal groups"
        )
    if moe.top_groups > moe.groups:
        yield (
            f"model.moe.top_groups = {moe.top_groups} is more than model.moe.groups = {moe.groups}"
        )
    reachable = moe.experts // moe.groups * moe.top_groups
    if moe.top_k > reachable:
        yield (
            f"model.moe.top_k = {moe.top_k} is more than the {reachable} experts that a token may "
            f"choose from: lower it, or raise model.moe.top_groups or model.moe.experts"
        )


def _checkpoint_problems(config: Config) -> Iterator[str]:
    """What keeps a run from starting from its checkpoint, or from leaving one."""
    model = config.model
    if config.checkpoint.export_hf and (reason := not_representable(model)):
        yield f"{reason}; set checkpoint.export_hf to false to train without saving weights"
    if model.init_from is None:
        return
    folder = Path(model.init_from).expanduser()
    run = Path(config.run.dir) / config.run.name
    for key, path in (("model.init_from", folder), ("data.tokenizer", config.data.tokenizer)):
        if path is not None and Path(path).expanduser().resolve().is_relative_to(run.resolve()):
            yield f"{key} is {path}, in the folder of this run, which it replaces: set run.name"
    theirs = model_from_hf(read_hf_config(folder), str(folder / CONFIG_FILE))
    for key, mine, other in differences(model, theirs):
        yield (
            f"{key} is {mine}, but the checkpoint of model.init_from has {other}: set it, or take "
            f"all of its model section from `python launch/convert.py {folder} --print-config`"
        )


def _pipeline_problems(config: Config) -> Iterator[str]:
    pipeline, layers = config.pipeline, config.model.layers
    try:
        schedule = schedule_of(config)
    except ScheduleError as error:
        yield str(error)
        return
    name, stages = schedule.name, schedule.stages
    given = pipeline.layers_per_stage
    if given is None:
        if layers < stages:
            yield (
                f"model.layers = {layers} is fewer than the {stages} stages of {name} "
                f"on mesh.pipeline = {config.mesh.pipeline}: set model.layers to {stages} or more"
            )
    elif len(given) != stages or sum(given) != layers or min(given) < 1:
        yield (
            f"pipeline.layers_per_stage = {given} must have {stages} entries of at least 1 (the "
            f"stages of {name}) that add up to model.layers = {layers}"
        )


def _batch_problems(config: Config) -> Iterator[str]:
    data_ranks, micro_batches = mesh_of(config).data, config.pipeline.micro_batches
    if config.data.global_batch % (data_ranks * micro_batches):
        multiple = data_ranks * micro_batches
        yield (
            f"data.global_batch = {config.data.global_batch} cannot be divided into "
            f"{data_ranks} data ranks x pipeline.micro_batches = {micro_batches}: set "
            f"data.global_batch to a multiple of {multiple}"
        )
