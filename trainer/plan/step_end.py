"""How long the end of a step takes: gradients summed over the copies of each parameter, the update,
and the new weights given back.

Rings: each copy sends its gradients, float32, but for its own share, then its share of the new
weights. Copies that share a node use the network cards of all of them at once; those of experts lie
one per node, and use their own GPU's. What sums hide behind the last passes is not counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from parallel.ranks.mesh import RankSet
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.parameters import RankParameters
from trainer.plan.traffic import NETWORK_EFFICIENCY, NVLINK_EFFICIENCY

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
    sums = back = 0.0
    sharded = config.optimizer.zero != "off"
    for together, count in rank.copies.items():
        rate, sent = _rate(together, machine), count * (len(together) - 1) / len(together)
        sums += sent * GRADIENT / rate
        back += sent * (weight if sharded else GRADIENT) / rate
    updated = rank.share if sharded else rank.total
    state = 2 * (GRADIENT + MOMENTS[config.optimizer.moments])  # masters as wide as gradients
    bytes_moved = updated * (2 * GRADIENT + state + weight) + rank.total * GRADIENT
    return StepEnd(sums, bytes_moved / machine.memory_bandwidth, back)


def _rate(together: RankSet, machine: Machine) -> float:
    """Bytes per second that each of these ranks sends around a ring."""
    nodes = Counter(rank // machine.gpus_per_node for rank in together)
    in_a_node = min(nodes.values())
    rates = []
    if in_a_node > 1:
        rates.append(machine.nvlink * NVLINK_EFFICIENCY)
    if len(nodes) > 1:
        rates.append(in_a_node * machine.network * NETWORK_EFFICIENCY)
    return min(rates, default=float("inf"))
