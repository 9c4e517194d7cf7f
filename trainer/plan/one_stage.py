"""One stage of a model on its own: its passes in the real executor, with no other rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeAlias

import torch
from torch import Tensor

from parallel.expert.placement import ExpertPlacement
from parallel.ops.precision import PRECISIONS
from parallel.pipeline.executor import Executor
from parallel.ranks.groups import open_groups
from parallel.reduce.gradients import make_gradients
from parallel.schedule.lower import Message, Step, inputs, outputs
from parallel.schedule.table import Action, Kind, Schedule
from parallel.tape.recorder import Recorder
from trainer.build.experts import dispatchers
from trainer.build.groups import ExpertExchange, expert_specs, groups_of_experts
from trainer.build.optimizer import put_parameters
from trainer.build.part import make_part
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.model.moe import BALANCE, ExpertsHere
from trainer.model.partition import Partition, moe_layers, partition_layers
from trainer.model.stage import MicroBatch, ModelStage
from trainer.objective.pretraining import DOCUMENTS, TOKENS, Pretraining
from trainer.plan.observed import device_of
from trainer.plan.traffic import tokens_of_micro_batch

Passes: TypeAlias = tuple[tuple[Kind, int], ...]
"""Kinds and micro-batches."""
FIRST: Passes = (("F", 0), ("B", 0))
PASSES: Passes = (("F", 1), ("B", 1), ("F", 2), ("I", 2), ("W", 2))


@dataclass(frozen=True)
class StageKind:
    """What tells the stages of a config apart. dense, experts: layers without and with experts.
    first: it embeds. last: it has the head, and MTP modules."""

    dense: int
    experts: int
    first: bool
    last: bool


def kind_of_stage(config: Config, partition: Partition, stage: int) -> StageKind:
    layers = partition.stage_layers(stage)
    dense = sum(layer < config.model.dense_layers for layer in layers)
    return StageKind(dense, len(layers) - dense, stage == 0, stage == partition.last)


def run_passes(config: Config, kind: StageKind, recorder: Recorder) -> Passes:
    """Run passes, and return them: PASSES, after FIRST where a step keeps something from its first
    micro-batch on, which are weights in fp8. A process group of the expert ranks exists where there
    are several; numbers are not set."""
    passes = FIRST + PASSES if config.precision.linear == "fp8" else PASSES
    stage, objective = _stage(config, kind)
    alone = {(0, each): each for each in range(stage.partition.last + 1)}
    schedule = Schedule("one stage", len(alone), 3, alone, ())
    micro_batch = _micro_batch(config)
    executor = Executor(
        schedule=schedule,
        program=tuple(_step(schedule, Action(kind, 0, stage.index, n)) for kind, n in passes),
        stages={(0, stage.index): stage},
        transport=_Nobody(config),  # type: ignore[arg-type]
        overlap=config.pipeline.overlap,
        recorder=recorder,
    )
    weights = dict.fromkeys((*objective.losses, BALANCE), 1.0)
    executor.run(lambda flow, number: micro_batch, weights)
    return passes


def _step(schedule: Schedule, item: Action) -> Step:
    took = inputs(schedule, item)
    return Step(took, item, outputs(schedule, item), took)


def _stage(config: Config, kind: StageKind) -> tuple[ModelStage, Pretraining]:
    """The stage, with an empty one before and after it where it is not the first or the last."""
    layers = kind.dense + kind.experts
    mtp = replace(config.model.mtp, depth=config.model.mtp.depth * kind.last)
    model = replace(config.model, layers=layers, dense_layers=kind.dense, mtp=mtp)
    counts = [0] * (not kind.first) + [layers] + [0] * (not kind.last)
    partition = partition_layers(layers, len(counts), mtp.depth, counts)
    device, index = device_of(config), int(not kind.first)
    experts = dict.fromkeys(moe_layers(model), _experts_here(config, device))
    part = make_part(replace(config, model=model), partition, [index], experts, device)
    parameters = dict(part.named_parameters())
    gradients = make_gradients(parameters, dict.fromkeys(parameters, (0,)), {}, 0, device=device)
    for share in gradients.shares:
        put_parameters(part, dict(zip(share.bucket.names, share.bucket.parameters)))
    objective = Pretraining(config.data.sequence_length, mtp.depth, config.data.mask_documents)
    return ModelStage(index, part, partition, objective), objective


def _experts_here(config: Config, device: torch.device) -> ExpertsHere:
    """Those of rank 0; what DeepEP holds is taken for what an all-to-all does."""
    placement = ExpertPlacement.contiguous(config.model.moe.experts, mesh_of(config).expert)
    exchange = ExpertExchange.of(config)
    if exchange.dispatch == "deepep":
        exchange = replace(exchange, dispatch="all_to_all")
    specs = expert_specs(tuple(range(placement.ranks)), exchange)
    opened = open_groups(specs, 0, timedelta(seconds=config.run.timeout), device)
    dispatcher_of = dispatchers(groups_of_experts(exchange, opened), device, config)
    return ExpertsHere(placement.held[0], dispatcher_of(placement))


def _micro_batch(config: Config) -> MicroBatch:
    length = config.data.sequence_length
    sequences = tokens_of_micro_batch(config, mesh_of(config)) // length
    shape = sequences, length + 1 + config.model.mtp.depth
    zeros = torch.zeros(shape, dtype=torch.int64).to(device_of(config))
    return {TOKENS: zeros, DOCUMENTS: zeros}


@dataclass(frozen=True)
class _Received:
    tensor: Tensor

    def wait(self) -> Tensor:
        return self.tensor


@dataclass(frozen=True)
class _Nobody:
    """A transport to no other rank: what is received is made here, what is sent is gone."""

    config: Config

    def post(self, message: Message) -> _Received:
        shape = tokens_of_micro_batch(self.config, mesh_of(self.config)), self.config.model.dim
        dtype = PRECISIONS[self.config.precision.parameters].parameters
        return _Received(torch.zeros(shape, dtype=dtype, device=device_of(self.config)))

    def send(self, message: Message, tensor: Tensor) -> None:
        return None

    def finish(self) -> None:
        return None
