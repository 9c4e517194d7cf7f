"""What a rank holds between steps, and what the end of a step needs beyond it: measured by making
the weights, gradients and optimizer of the rank, and running one update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from torch import Tensor

from parallel.expert.dispatch import LocalDispatcher
from parallel.expert.placement import ExpertPlacement
from parallel.expert.wire import PlainWire
from parallel.ranks.groups import GroupSpec, open_groups
from parallel.ranks.mesh import Coordinate
from parallel.reduce.copies import copies
from parallel.schedule.table import Schedule
from trainer.build.optimizer import make_optimizer
from trainer.build.part import make_part
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.model.moe import ExpertsHere
from trainer.model.part import ModelPart
from trainer.model.partition import Partition, moe_layers
from trainer.plan.observed import device_of, observed


@dataclass(frozen=True)
class StateMemory:
    """Bytes. host: of these, what optimizer.offload keeps on the host, which masters and moments
    do not count then. update: of sums of gradients, norm, clipping and update, beyond the rest."""

    weights: int
    gradients: int
    masters: int
    moments: int
    update: int
    host: int = 0


def state_memory(
    config: Config, schedule: Schedule, partition: Partition, pipeline_rank: int
) -> StateMemory:
    """Of the first rank at this place of a pipeline. optimizer.zero: deepspeed counts as shard,
    whose masters and moments are as large."""
    mesh = mesh_of(config)
    rank = mesh.rank(Coordinate(pipeline_rank, 0, 0))
    with observed(config, rank, mesh.world) as memory:
        part = _part(config, schedule, partition, pipeline_rank)
        names = [name for name, _ in part.named_parameters()]
        sets = {n: copies(partition.home(n), mesh, schedule.placement, 0) for n in names}
        specs = [GroupSpec(one, "sums", "all-reduce") for one in sorted(set(sets.values()))]
        device = device_of(config)
        opened = open_groups(specs, rank, timedelta(seconds=1), device)
        groups = {spec.ranks: group for spec, group in opened.items()}
        held = {stage for _, stage in schedule.stages_of(pipeline_rank)}
        gradients, optimizer = make_optimizer(
            part, sets, groups, rank, partition, held, config.optimizer, device, lambda: None
        )
        buckets = [share.bucket for share in gradients.shares]
        weights = {
            _storage(each): each.untyped_storage().nbytes()
            for each in (*(bucket.values for bucket in buckets), *part.buffers())
        }
        masters = [f.values for f in optimizer.state() if f.kind == "master"]
        moments = [f.values for f in optimizer.state() if f.kind != "master"]
        memory.look()
        memory.forget_peak()
        before = sum(memory.now().values())
        optimizer.zero()
        optimizer.step(optimizer.reduce().sqrt(), config.optimizer.lr)
        memory.look()
        update = sum(memory.peak.values()) - before
        kept = _bytes(each for each in masters if _storage(each) not in weights), _bytes(moments)
        away = config.optimizer.offload and device.type != "cpu"
        return StateMemory(
            sum(weights.values()),
            _bytes(bucket.gradient for bucket in buckets),
            *((0, 0) if away else kept),
            update=update,
            host=sum(kept) if away else 0,
        )


def _part(
    config: Config, schedule: Schedule, partition: Partition, pipeline_rank: int
) -> ModelPart:
    stages = {stage for _, stage in schedule.stages_of(pipeline_rank)}
    held = ExpertPlacement.contiguous(config.model.moe.experts, mesh_of(config).expert).held[0]
    experts = dict.fromkeys(
        moe_layers(config.model), ExpertsHere(held, LocalDispatcher(len(held), PlainWire()))
    )
    return make_part(config, partition, stages, experts, device_of(config))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of their storages, each once."""
    return sum({_storage(t): t.untyped_storage().nbytes() for t in tensors}.values())
