"""What one rank sends in a step, by kind and by link."""

from __future__ import annotations

from parallel.schedule.lower import lower
from parallel.schedule.table import Schedule
from trainer.build.part import partition_of
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.parameters import RankParameters
from trainer.plan.step_end import GRADIENT, WEIGHT, ring_bytes
from trainer.plan.traffic import Bytes, exchange_bytes, message_bytes

NOTHING = Bytes()


def step_traffic(
    config: Config, schedule: Schedule, rank: RankParameters, pipeline_rank: int, machine: Machine
) -> dict[str, Bytes]:
    """Bytes by kind: the four all-to-alls of all its layers, messages of the pipeline, gradients
    summed over their copies, new weights given back."""
    mesh, partition = mesh_of(config), partition_of(config, schedule)
    passes = 0  # through a layer with experts, forward and backward
    for _, stage in schedule.stages_of(pipeline_rank):
        layers = list(partition.stage_layers(stage))
        layers += partition.mtp_layers() if stage == partition.last else []
        with_experts = sum(layer >= config.model.dense_layers for layer in layers)
        passes += with_experts * schedule.micro_batches_per_flow
    each = exchange_bytes(config, mesh, machine) if mesh.expert > 1 else {}
    messages = sum(len(step.sends) for step in lower(schedule).programs[pipeline_rank])
    sent = messages * message_bytes(config, mesh)
    far = mesh.data >= machine.gpus_per_node
    weight = WEIGHT[config.precision.parameters] if config.optimizer.zero != "off" else GRADIENT
    return {
        **{name: amount * passes for name, amount in each.items()},
        "pipeline": Bytes(network=sent) if far else Bytes(nvlink=sent),
        "gradients": sum(ring_bytes(rank, GRADIENT, machine), NOTHING),
        "weights": sum(ring_bytes(rank, weight, machine), NOTHING),
    }
