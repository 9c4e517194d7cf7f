"""One stage of a model on its own: its passes in the real executor, with no other rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
from parallel.expert.placement import ExpertPlacement
from parallel.ops.accumulate import set_gradient
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.pipeline.executor import Executor
from parallel.schedule.lower import Message, Step, inputs, outputs
from parallel.schedule.table import Action, Kind, Schedule
from parallel.tape.recorder import Recorder
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.model.moe import BALANCE, ExpertsHere
from trainer.model.options import LayerOptions
from trainer.model.part import ModelPart
from trainer.model.partition import Partition, moe_layers, partition_layers
from trainer.model.stage import MicroBatch, ModelStage
from trainer.objective.pretraining import TOKENS, Pretraining
from trainer.plan.observed import device_of
from trainer.plan.traffic import tokens_of_micro_batch

PASSES: tuple[tuple[Kind, int], ...] = (("F", 0), ("B", 0), ("F", 1), ("I", 1), ("W", 1))
"""Kinds and micro-batches."""


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


def run_passes(config: Config, kind: StageKind, recorder: Recorder) -> tuple[tuple[Kind, int], ...]:
    """Run PASSES, and return them. A process group of the expert ranks exists where there are
    several; numbers are not set."""
    stage, objective = _stage(config, kind)
    alone = {(0, each): each for each in range(stage.partition.last + 1)}
    schedule = Schedule("one stage", len(alone), 2, alone, ())
    micro_batch = _micro_batch(config)
    executor = Executor(
        schedule=schedule,
        program=tuple(_step(schedule, Action(kind, 0, stage.index, n)) for kind, n in PASSES),
        stages={(0, stage.index): stage},
        transport=_Nobody(config),  # type: ignore[arg-type]
        overlap=config.pipeline.overlap,
        recorder=recorder,
    )
    weights = dict.fromkeys((*objective.losses, BALANCE), 1.0)
    executor.run(lambda flow, number: micro_batch, weights)
    return PASSES


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
    ops = Ops(PRECISIONS[config.precision.parameters])
    options = LayerOptions(model, config.recompute, ops, config.data.sequence_length)
    device, index = device_of(config), int(not kind.first)
    experts = dict.fromkeys(moe_layers(model), _experts_here(config, device))
    part = ModelPart(options, partition, [index], experts).to(device)
    for parameter in part.parameters():
        shape, dtype = parameter.shape, ops.precision.accurate
        set_gradient(parameter, torch.zeros(shape, dtype=dtype, device=device))
    objective = Pretraining(config.data.sequence_length, mtp.depth)
    return ModelStage(index, part, partition, objective), objective


def _experts_here(config: Config, device: torch.device) -> ExpertsHere:
    placement = ExpertPlacement.contiguous(config.model.moe.experts, mesh_of(config).expert)
    dispatcher: Dispatcher = LocalDispatcher()
    if placement.ranks > 1:
        group = dist.group.WORLD
        assert group is not None  # the caller has made it
        dispatcher = AllToAllDispatcher(group, placement, device)
    return ExpertsHere(placement.held[0], dispatcher)


def _micro_batch(config: Config) -> MicroBatch:
    length = config.data.sequence_length
    sequences = tokens_of_micro_batch(config, mesh_of(config)) // length
    shape = sequences, length + 1 + config.model.mtp.depth
    return {TOKENS: torch.zeros(shape, dtype=torch.int64).to(device_of(config))}


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
