"""One rank's share of a run: its place in the mesh, its groups, its part of the model, and the
pipeline that runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.reduce.copies import all_copies, copies
from parallel.reduce.gradients import Gradients
from parallel.expert.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
from parallel.ranks.groups import make_groups
from parallel.ranks.mesh import RankSet
from parallel.ranks.mesh import Mesh
from parallel.pipeline.executor import Executor
from parallel.schedule.generators import forward_only
from parallel.schedule.lower import channels, lower
from parallel.tape.recorder import Recorder, Silence
from parallel.schedule.table import Schedule
from parallel.pipeline.transport import Transport
from parallel.ranks.process import Process
from parallel.ranks.together import together
from trainer.config.schema import Config
from trainer.checkpoint.hf.load import load_part, require_model
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.model.named import initialise
from trainer.model.part import ModelPart
from trainer.model.partition import Partition, partition_layers
from trainer.model.stage import ModelStage
from trainer.config.derived import schedule_of
from trainer.config.derived import mesh_of

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Layout:
    """What a rank holds. `build` makes one."""

    config: Config
    process: Process
    device: torch.device
    mesh: Mesh
    schedule: Schedule
    partition: Partition
    part: ModelPart
    gradients: Gradients
    copies_of: dict[str, RankSet]
    transport: Transport | None
    patient: dist.ProcessGroup | None

    @property
    def pipeline_rank(self) -> int:
        return self.mesh.coordinate(self.process.rank).pipeline

    @property
    def expert_rank(self) -> int:
        return self.mesh.coordinate(self.process.rank).expert

    @property
    def sequences(self) -> int:
        """Sequences of a micro-batch."""
        micro_batches = self.mesh.data * self.config.pipeline.micro_batches
        return self.config.data.global_batch // micro_batches

    def trainer(self, overlap: bool, recorder: Recorder | None = None) -> Executor:
        """The executor of training steps."""
        return self.executor(self.schedule, overlap, recorder)

    def evaluator(self, micro_batches: int) -> Executor:
        """The executor of forward passes only."""
        return self.executor(forward_only(self.schedule.placement, micro_batches), True)

    def executor(
        self, schedule: Schedule, overlap: bool, recorder: Recorder | None = None
    ) -> Executor:
        """The executor of any table with the placement of this layout."""
        return Executor(
            schedule=schedule,
            program=lower(schedule).programs[self.pipeline_rank],
            stages={
                (flow, stage): ModelStage(stage, self.part, self.partition, self.config)
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
    patient: dist.ProcessGroup | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Layout:
    """Make the process groups and this rank's part of the model, with its initial weights.

    Collective: every rank of the world must call it. The world's group exists if there is one.
    patient: group to wait in for ranks that read or save weights (see `together`). progress(done,
    total): bytes that this rank has read of model.init_from. Raises CheckpointError where that
    cannot be read or is no such model.
    """
    mesh = mesh_of(config)
    pipeline = config.pipeline
    schedule = schedule_of(config)
    partition = partition_layers(
        config.model.layers, schedule.stages, config.model.mtp.depth, pipeline.layers_per_stage
    )
    timeout = timedelta(seconds=config.run.timeout)
    rank = process.rank
    place = mesh.coordinate(rank)

    groups = make_groups(all_copies(partition.homes(), mesh, schedule.placement), rank, timeout)
    part = ModelPart(
        config,
        partition,
        {stage for _, stage in schedule.stages_of(place.pipeline)},
        _dispatcher(config, mesh, rank, timeout),
    ).to(device=device, dtype=DTYPES[config.run.dtype])
    parameters = dict(part.named_parameters())
    copies_of = {
        name: copies(partition.home(name), mesh, schedule.placement, place.expert)
        for name in parameters
    }
    compare = all(copies_of[name][0] == rank for name in parameters if "eh_proj" in name)
    together(lambda: _initial_weights(part, config, place.expert, compare, progress), patient)

    gradients = Gradients(parameters, copies_of, groups, rank)
    layout = Layout(
        config, process, device, mesh, schedule, partition, part, gradients, copies_of, None, patient
    )
    layout.transport = _transport(layout, timeout)
    return layout


def _initial_weights(
    part: ModelPart,
    config: Config,
    expert_rank: int,
    compare: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Random weights, or those of model.init_from; compare: see load_part."""
    model = config.model
    if model.init_from is None:
        initialise(part, expert_rank, config.run.seed, model.init_std)
        return
    checkpoint = Checkpoint(Path(model.init_from).expanduser())
    require_model(checkpoint, model)
    load_part(part, model, checkpoint, expert_rank, compare, progress)


def _dispatcher(config: Config, mesh: Mesh, rank: int, timeout: timedelta) -> Dispatcher:
    groups = make_groups((mesh.expert_group(r) for r in range(mesh.world)), rank, timeout)
    if mesh.expert == 1:
        return LocalDispatcher()
    group: dist.ProcessGroup = groups[mesh.expert_group(rank)]
    return AllToAllDispatcher(group, config.model.moe.experts // mesh.expert)


def _transport(layout: Layout, timeout: timedelta) -> Transport | None:
    mesh, rank, config = layout.mesh, layout.process.rank, layout.config
    pipelines = [mesh.pipeline_group(r) for r in range(mesh.data)]
    up, down = (make_groups(pipelines, rank, timeout) for _ in range(2))
    if mesh.pipeline == 1:
        return None
    ranks = mesh.pipeline_group(rank)
    tokens = layout.sequences * config.data.sequence_length
    transport = Transport(
        rank=layout.pipeline_rank,
        ranks=ranks,
        up=up[ranks],
        down=down[ranks],
        shape=(tokens, config.model.dim),
        dtype=DTYPES[config.run.dtype],
        device=layout.device,
    )
    transport.open(channels(lower(layout.schedule)))
    return transport
