"""One rank's share of a run: its place in the mesh, its groups, its part of the model, and the
pipeline that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from parallel.expert.router import Choose, choose
from parallel.ops.precision import PRECISIONS
from parallel.pipeline.executor import Executor
from parallel.pipeline.transport import Transport
from parallel.ranks.mesh import Mesh, RankSet
from parallel.ranks.process import Process
from parallel.ranks.together import together
from parallel.reduce.copies import copies
from parallel.reduce.gradients import Gradients
from parallel.schedule.generators import forward_only
from parallel.schedule.lower import Channel, lower
from parallel.schedule.table import Schedule
from parallel.tape.recorder import Recorder, Silence
from trainer.build.context import context_here
from trainer.build.experts import Placements, experts_here, trainable
from trainer.build.groups import ExpertExchange, open_run_groups
from trainer.build.optimizer import make_optimizer
from trainer.build.part import make_part, partition_of
from trainer.build.weights import open_weights, set_weights
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config
from trainer.model.moe import BALANCE
from trainer.model.part import ModelPart
from trainer.model.partition import Partition
from trainer.model.stage import MicroBatch, ModelStage, Objective
from trainer.objective.objective import TrainingObjective
from trainer.objective.pretraining import Pretraining
from trainer.optim.average import WeightAverage
from trainer.optim.optimizer import Optimizer
from trainer.recipe.recipe import StepRecipe


@dataclass(frozen=True)
class Layout:
    """What a rank holds. `build` makes one.

    average: of the weights, where optimizer.ema asks for one. copies_of: by parameter, the ranks
    that hold it. groups: by such a set.
    """

    config: Config
    process: Process
    device: torch.device
    mesh: Mesh
    schedule: Schedule
    placements: Placements
    partition: Partition
    part: ModelPart
    objective: TrainingObjective
    gradients: Gradients
    optimizer: Optimizer
    average: WeightAverage | None
    copies_of: Mapping[str, RankSet]
    groups: Mapping[RankSet, dist.ProcessGroup]
    transport: Transport | None

    @property
    def pipeline_rank(self) -> int:
        return self.mesh.coordinate(self.process.rank).pipeline

    @property
    def expert_rank(self) -> int:
        return self.mesh.coordinate(self.process.rank).expert

    @property
    def data_rank(self) -> int:
        return self.mesh.data_rank(self.process.rank)

    @property
    def batch_part(self) -> int:
        """Which part of a batch this rank has, of `mesh.parts`."""
        return self.mesh.part(self.process.rank)

    def local(self, micro_batch: MicroBatch) -> MicroBatch:
        """Of the windows of a micro-batch what this rank computes with."""
        context = self.part.options.context
        if context is None:
            return micro_batch
        return {name: context.chunks.rows(value) for name, value in micro_batch.items()}

    @property
    def patience(self) -> timedelta:
        """How long ranks wait for one that reads or saves weights (see `together`)."""
        return _patience(self.config)

    @property
    def sequences(self) -> int:
        """Sequences of a micro-batch."""
        return _sequences(self.config, self.mesh)

    def loss_weights(
        self, recipe: StepRecipe, targets: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Of each loss in the total that a step differentiates: means over its global batch.
        targets: of that, where they vary."""
        targets = targets or self.objective.targets(recipe.sequences)
        balance = recipe.balance_alpha / recipe.sequences
        return {**self.objective.weights(recipe, targets), BALANCE: balance}

    def training_executor(
        self, micro_batches: int, overlap: bool, recorder: Recorder | None = None
    ) -> Executor:
        """Runs the forward and backward passes of a step of so many micro-batches."""
        schedule = schedule_of(self.config, micro_batches)
        return self.executor(schedule, self.objective, overlap, recorder)

    def forward_executor(
        self, objective: Objective, micro_batches: int, recorder: Recorder | None = None
    ) -> Executor:
        """Runs forward passes only."""
        schedule = forward_only(self.schedule.placement, micro_batches)
        return self.executor(schedule, objective, overlap=True, recorder=recorder)

    def executor(
        self,
        schedule: Schedule,
        objective: Objective,
        overlap: bool,
        recorder: Recorder | None = None,
    ) -> Executor:
        """The executor of any table with the placement of this layout."""
        return Executor(
            schedule=schedule,
            program=lower(schedule).programs[self.pipeline_rank],
            stages={
                (flow, stage): ModelStage(stage, self.part, self.partition, objective)
                for flow, stage in schedule.stages_of(self.pipeline_rank)
            },
            transport=self.transport,
            overlap=overlap,
            recorder=recorder or Silence(),
        )


def build(
    config: Config,
    process: Process,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    placements: Placements | None = None,
    choose: Choose = choose,
) -> Layout:
    """Make the process groups and this rank's part of the model, with its initial weights.

    Collective: every rank of the world must call it. The world's group exists if there is one.
    progress(done, total): bytes that this rank has read of model.init_from. placements: contiguous
    on every layer when not given. choose: which experts a token goes to. Raises CheckpointError
    where model.init_from cannot be read or is another model.
    """
    mesh, schedule = mesh_of(config), schedule_of(config)
    place, timeout = mesh.coordinate(process.rank), timedelta(seconds=config.run.timeout)
    placements = trainable(placements, config.model, mesh)
    partition = partition_of(config, schedule)
    groups = open_run_groups(
        mesh, schedule, partition.homes(), process.rank, timeout, device,
        ExpertExchange.of(config),
    )  # fmt: skip
    stages = {stage for _, stage in schedule.stages_of(place.pipeline)}
    experts = experts_here(placements, place.expert, groups.experts, device, config)
    context = context_here(config, mesh, process.rank, groups.context, device)
    part = make_part(config, partition, stages, experts, device, choose, context)
    copies_of = {
        name: copies(partition.home(name), mesh, schedule.placement, place.expert)
        for name, _ in part.named_parameters()
    }
    # Of the ranks that hold MTP modules, the first compares what they repeat.
    compare = all(copies_of[name][0] == process.rank for name in copies_of if "eh_proj" in name)
    patience = _patience(config)
    checkpoint = open_weights(config, patience)
    fill = partial(set_weights, part, config, checkpoint, compare, progress)
    gradients, optimizer = make_optimizer(
        part, copies_of, groups.copies, process.rank, partition, stages, config.optimizer, device,
        lambda: together(fill, patience),
    )  # fmt: skip
    decay = config.optimizer.ema
    return Layout(
        config=config,
        process=process,
        device=device,
        mesh=mesh,
        schedule=schedule,
        placements=placements,
        partition=partition,
        part=part,
        objective=Pretraining(
            config.data.sequence_length,
            config.model.mtp.depth,
            config.data.mask_documents,
            None if context is None else context.chunks,
        ),
        gradients=gradients,
        optimizer=optimizer,
        average=None if decay is None else WeightAverage(optimizer, gradients, decay),
        copies_of=copies_of,
        groups=groups.copies,
        transport=_transport(config, mesh, groups.channels, process.rank, device),
    )


def _patience(config: Config) -> timedelta:
    return timedelta(seconds=config.run.io_timeout)


def _sequences(config: Config, mesh: Mesh) -> int:
    return config.data.global_batch // (mesh.parts * config.pipeline.micro_batches)


def _tokens(config: Config, mesh: Mesh) -> int:
    """Of a micro-batch, on one rank."""
    return _sequences(config, mesh) * config.data.sequence_length // mesh.context


def _transport(
    config: Config,
    mesh: Mesh,
    groups: Mapping[Channel, dist.ProcessGroup],
    rank: int,
    device: torch.device,
) -> Transport | None:
    """The channels to the other ranks of this rank's pipeline; None if it has no others."""
    if mesh.pipeline == 1:
        return None
    return Transport(
        rank=mesh.coordinate(rank).pipeline,
        ranks=mesh.pipeline_group(rank),
        groups=groups,
        shape=(_tokens(config, mesh), config.model.dim),
        dtype=PRECISIONS[config.precision.parameters].parameters,
        device=device,
    )
