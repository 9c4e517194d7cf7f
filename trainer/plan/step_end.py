"""How long the end of a step takes: gradients summed over the copies of each parameter, the update,
and the new weights given back.

Rings: each copy sends its gradients, float32, but for its own share, then its share of the new
weights. Copies that share a node use the network cards of all of them at once; those of experts lie
one per node, and use their own GPU's. What sums hide behind the last passes is not counted. With
optimizer.offload gradients of what a rank updates go to the host and new weights come back, over
PCIe 5.0, 64 GB/s each way (128 both ways, NVIDIA H100 datasheet), one after the other; what the
host's processor takes is not known, and not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.parameters import RankParameters
from trainer.plan.traffic import Bytes

HOST_LINK = 64e9  # bytes per second, one way
GRADIENT = 4
WEIGHT = {"bfloat16": 2, "float32": 4, "float64": 8}
MOMENTS = {"bfloat16": 2 * 2, "float32": 2 * 4}


@dataclass(frozen=True)
class StepEnd:
    """Seconds on one rank. sums: of gradients; update; back: of new weights."""

    sums: float
    update: float
    back: float

    @property
    def total(self) -> float:
        return self.sums + self.update + self.back


def step_end(config: Config, rank: RankParameters, machine: Machine) -> StepEnd:
    """Of a rank with these parameters."""
    weight = WEIGHT[config.precision.parameters]
    sums = sum(each.seconds(machine) for each in ring_bytes(rank, GRADIENT, machine))
    given_back = weight if config.optimizer.zero != "off" else GRADIENT
    back = sum(each.seconds(machine) for each in ring_bytes(rank, given_back, machine))
    updated = rank.share if config.optimizer.zero != "off" else rank.total
    state = 2 * (GRADIENT + MOMENTS[config.optimizer.moments])  # masters as wide as gradients
    bytes_moved = updated * (2 * GRADIENT + state + weight) + rank.total * GRADIENT
    update = bytes_moved / machine.memory_bandwidth
    if config.optimizer.offload:
        update = rank.total * GRADIENT / machine.memory_bandwidth
        update += updated * (GRADIENT + weight) / HOST_LINK
    return StepEnd(sums, update, back)


def ring_bytes(rank: RankParameters, width: int, machine: Machine) -> Iterator[Bytes]:
    """What a rank sends for each set of copies, numbers of `width` bytes going around once: through
    NVLink where copies share a node, through its own network card its part of what leaves it."""
    for together, count in rank.copies.items():
        nodes = Counter(other // machine.gpus_per_node for other in together)
        in_a_node = min(nodes.values())
        sent = count * width * (len(together) - 1) / len(together)
        yield Bytes(
            network=sent / in_a_node if len(nodes) > 1 else 0.0,
            nvlink=sent if in_a_node > 1 else 0.0,
        )
