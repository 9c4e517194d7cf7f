"""What a config must satisfy before anything starts: each violation is one line that names the key
and what would be right."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
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
from trainer.config.keys import did_you_mean, keys, values
from trainer.config.schema import Config, ModelConfig, RecomputeConfig, RunConfig
from trainer.config.sources import named_sources
from trainer.config.validate_context import context_problems
from trainer.config.validate_dispatch import dispatch_problems
from trainer.config.validate_recipe import recipe_problems
from trainer.config.values import shown
from trainer.errors import ConfigError

# Each has a name and an entry in tables of names; DeepSeek-V3 has 15,000.
_MOST_EXPERTS = 1_000_000


def validate(config: Config, world_size: int) -> None:
    """Raise ConfigError for the first thing that cannot work with `world_size` processes."""
    for problem in _problems(config, world_size):
        raise ConfigError(problem)


def _problems(config: Config, world_size: int) -> Iterator[str]:
    yield from _out_of_range(config)
    yield from _mesh_problems(config, world_size)
    yield from _model_problems(config.model)
    yield from _data_problems(config)
    yield from _optimizer_problems(config)
    yield from _compiler_problems(config.run)
    yield from _checkpoint_problems(config)
    yield from context_problems(config)
    yield from _batch_problems(config)  # before the schedule, whose table may be vast
    yield from _recompute_problems(config.recompute)
    yield from _pipeline_problems(config)
    yield from recipe_problems(config)


def _data_problems(config: Config) -> Iterator[str]:
    data = config.data
    if config.model.vocab_size < 257 and not (data.tokenizer or config.model.init_from):
        yield f"model.vocab_size must be at least 257 for bytes, got {config.model.vocab_size}"
    if data.mixture is not None:
        if data.path is not None:
            yield "data.path and data.mixture are both given: set one of them to null"
        try:
            named_sources(data.mixture)
        except ConfigError as error:
            yield str(error)


def _out_of_range(section: object, prefix: str = "") -> Iterator[str]:
    """Values of a section, and of those in it, that its fields do not allow."""
    for key, value in values(section, prefix):
        each = value if isinstance(value, list | tuple) else [value]
        if value is None:
            if not key.optional:
                yield f"{key.name} must not be null"
        elif key.limit and not all(item in key.limit for item in each):
            yield f"{key.name} must be {key.limit}, got {shown(value)}"


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
    yield from dispatch_problems(config)


def model_problems(model: ModelConfig) -> Iterator[str]:
    """What is wrong with an architecture, each problem one line."""
    yield from _out_of_range(model, "model.")
    yield from _model_problems(model)


def _model_problems(model: ModelConfig) -> Iterator[str]:
    attention, moe = model.attention, model.moe
    if attention.rope_head_dim % 2:
        yield f"model.attention.rope_head_dim must be even, got {attention.rope_head_dim}"
    if model.dense_layers > model.layers:
        yield (
            f"model.dense_layers = {model.dense_layers} is more than model.layers = {model.layers}"
        )
    if model.layers * moe.experts > _MOST_EXPERTS:
        yield (
            f"model.layers x model.moe.experts = {model.layers} x {moe.experts} is more than "
            f"{_MOST_EXPERTS:,} experts: lower one of them"
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


def _optimizer_problems(config: Config) -> Iterator[str]:
    optimizer = config.optimizer
    if optimizer.offload and optimizer.name == "muon":
        yield (
            "optimizer.offload updates weights on the host, where Muon's products are slow: set "
            "optimizer.name to adamw, or optimizer.offload to false"
        )
    if optimizer.offload and optimizer.zero == "deepspeed":
        yield "optimizer.offload is not written for optimizer.zero = deepspeed: set that to shard"
    if optimizer.zero != "deepspeed":
        return
    for key, value, only in (
        ("optimizer.name", optimizer.name, ("adamw",)),
        ("optimizer.moments", optimizer.moments, ("float32",)),
        ("precision.parameters", config.precision.parameters, ("float32", "bfloat16")),
    ):
        if value not in only:
            yield (
                f"{key} = {value} is not what optimizer.zero = deepspeed does ({' or '.join(only)} "
                "only): set optimizer.zero to shard"
            )
    if find_spec("deepspeed") is None:
        yield (
            "optimizer.zero = deepspeed: DeepSpeed is not installed: pip install "
            "'deepspeed==0.19.8', or set optimizer.zero to shard"
        )


def _compiler_problems(run: RunConfig) -> Iterator[str]:
    """What torch.compile would miss in the first step."""
    if not run.compile:
        return
    or_not = "or set run.compile to false"
    compiler, headers = shlex.split(os.environ.get("CXX", "g++")), sysconfig.get_path("include")
    if not compiler or shutil.which(compiler[0]) is None:
        yield (
            f"run.compile needs a C++ compiler, and there is no `{' '.join(compiler[:1])}` here: "
            f"install g++, name another compiler in the environment variable CXX, {or_not}"
        )
    if not Path(headers, "Python.h").exists():
        yield (
            f"run.compile needs Python's headers, and there is no Python.h in {headers}: install "
            f"them (python3-dev), {or_not}"
        )
    if run.device == "cuda" and find_spec("triton") is None:
        yield f"run.compile needs triton, which is not installed: pip install triton, {or_not}"


def _checkpoint_problems(config: Config) -> Iterator[str]:
    """What keeps a run from starting from its checkpoint, or from leaving one."""
    model = config.model
    if config.checkpoint.export_ema and config.optimizer.ema is None:
        yield "checkpoint.export_ema needs averaged weights: set optimizer.ema, as to 0.999"
    if config.checkpoint.export_ema and not config.checkpoint.export_hf:
        yield "checkpoint.export_ema needs checkpoint.export_hf: set it to true"
    if config.checkpoint.export_hf and (reason := not_representable(model)):
        yield f"{reason}; set checkpoint.export_hf to false to train without saving weights"
    names = [key.name for key in keys(Config)]
    for name in config.checkpoint.allow_changes or ():
        if not any(key == name or key.startswith(f"{name}.") for key in names):
            yield (
                f"checkpoint.allow_changes: there is no key or section {shown(name)}"
                f"{did_you_mean(name, names)}"
            )
    if model.init_from is None:
        return
    folder = Path(model.init_from).expanduser()
    theirs = model_from_hf(read_hf_config(folder), str(folder / CONFIG_FILE))
    for key, mine, other in differences(model, theirs):
        yield (
            f"{key} is {mine}, but the checkpoint of model.init_from has {other}: set it, or take "
            f"all of its model section from `python launch/convert.py {folder} --print-config`"
        )


def _recompute_problems(recompute: RecomputeConfig) -> Iterator[str]:
    if recompute.layer and recompute.offload:
        yield (
            "recompute.offload moves what experts keep, and with recompute.layer true they keep "
            "nothing: set one of both to false"
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
    elif len(given) != stages or sum(given) != layers:
        yield (
            f"pipeline.layers_per_stage = {shown(given)} must have {stages} entries (the "
            f"stages of {name}) that add up to model.layers = {layers}"
        )


def _batch_problems(config: Config) -> Iterator[str]:
    mesh, micro_batches = mesh_of(config), config.pipeline.micro_batches
    if config.data.global_batch % (mesh.parts * micro_batches):
        multiple = mesh.parts * micro_batches
        shared = "" if mesh.context == 1 else f", of mesh.context = {mesh.context} each,"
        yield (
            f"data.global_batch = {config.data.global_batch} cannot be divided into "
            f"{mesh.data} data ranks{shared} x pipeline.micro_batches = {micro_batches}: set "
            f"data.global_batch to a multiple of {multiple}"
        )
