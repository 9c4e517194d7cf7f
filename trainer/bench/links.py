"""How long what leaves a rank is on its way: by the links of its datasheet, or at one rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.schema import ClusterConfig
from trainer.plan.datasheets import Machine, machine_of
from trainer.plan.traffic import NETWORK_EFFICIENCY, NVLINK_EFFICIENCY, Bytes


@dataclass(frozen=True)
class Links:
    """rate: bytes per second, whichever rank they go to; where None, those of the machine: to other
    nodes, and within a node, both at work together, as a plan counts them."""

    machine: Machine
    rate: float | None

    @classmethod
    def of(cls, cluster: ClusterConfig, rate: float | None) -> Links:
        """The links of a config's cluster."""
        return cls(machine_of(cluster), rate)

    def seconds(self, rank: int, others: Sequence[int], sent: Sequence[float]) -> float:
        """Until so many bytes have left `rank` for each of the others (ranks of the world)."""
        if self.rate is not None:
            return sum(sent) / self.rate
        here = self.machine.gpus_per_node
        total = Bytes()
        for other, size in zip(others, sent, strict=True):
            total += Bytes(nvlink=size) if other // here == rank // here else Bytes(network=size)
        return total.seconds(self.machine)

    def describe(self) -> str:
        """For a title."""
        if self.rate is not None:
            return f"links of {self.rate / 1e9:,.3g} GB/s"
        network = self.machine.network * NETWORK_EFFICIENCY
        nvlink = self.machine.nvlink * NVLINK_EFFICIENCY
        return f"links of {network / 1e9:,.3g} GB/s, {nvlink / 1e9:,.3g} within a node"
