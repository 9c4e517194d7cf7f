"""Bytes that one GPU sends, by kind and by link, and how long they take.

An all-to-all takes as long as its slower link: what goes to other nodes through the network card,
what stays in a node through NVLink. Effective rates are shares of the datasheet's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from parallel.ranks.mesh import Mesh
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.routing import bins_reached

NETWORK_EFFICIENCY = 0.8
"""40 of 50 GB/s on InfiniBand (arXiv 2505.09343, section 4.3)."""
NVLINK_EFFICIENCY = 0.8
"""160 of 200 GB/s on an H800 (the same)."""
FP8_BYTES = 1 + 4 / 128
"""Of a value: itself, and its part of the float32 scale of 128."""
WEIGHT_BYTES = NUMBER_BYTES = 4
"""Of a chosen expert: its weight, float32, and its number."""


@dataclass(frozen=True)
class Bytes:
    """Sent by one GPU: to other nodes, and to other GPUs of its node."""

    network: float = 0.0
    nvlink: float = 0.0

    def seconds(self, machine: Machine) -> float:
        """Both links at work together."""
        return max(
            self.network / (machine.network * NETWORK_EFFICIENCY),
            self.nvlink / (machine.nvlink * NVLINK_EFFICIENCY),
        )

    def __mul__(self, factor: float) -> Bytes:
        return Bytes(self.network * factor, self.nvlink * factor)

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.network + other.network, self.nvlink + other.nvlink)


@dataclass(frozen=True)
class Exchanges:
    """The four all-to-alls of one layer and micro-batch; `back` those of the backward, of which
    combine's sends what dispatch's received. Of bytes, or of seconds."""

    dispatch: float
    combine: float
    combine_back: float
    dispatch_back: float


@dataclass(frozen=True)
class Copies:
    """Of one token on its way to its experts: to other nodes, and inside of nodes."""

    network: float
    nvlink: float


def linear_of(config: Config) -> Literal["bfloat16", "fp8"]:
    """What the plan counts: plan.linear, or else what the run does."""
    return config.plan.linear or ("fp8" if config.precision.linear == "fp8" else "bfloat16")


def dispatch_of(config: Config) -> str:
    """What the plan counts: plan.dispatch, or else what the run does."""
    return config.plan.dispatch or config.mesh.dispatch


def copies_sent(config: Config, mesh: Mesh, machine: Machine) -> Copies:
    """all_to_all: one for each rank with a chosen expert. hierarchical, deepep: one for each other
    node, and from the GPU where it arrives one for each rank there (DeepSeek-V3, section 3.2.2)."""
    moe, ranks = config.model.moe, mesh.expert
    here = min(ranks, machine.gpus_per_node)
    nodes = ranks // here
    to_ranks = bins_reached(moe, ranks)
    if dispatch_of(config) != "all_to_all":
        return Copies(bins_reached(moe, nodes) * (1 - 1 / nodes), to_ranks * (1 - 1 / here))
    return Copies(to_ranks * (1 - 1 / nodes), to_ranks * (here - 1) / ranks)


def exchange_bytes(config: Config, mesh: Mesh, machine: Machine) -> dict[str, Bytes]:
    """Of the four all-to-alls by name, for one layer and micro-batch."""
    copies, tokens = copies_sent(config, mesh, machine), tokens_of_micro_batch(config, mesh)
    dim, top_k = config.model.dim, config.model.moe.top_k
    narrow = FP8_BYTES if config.mesh.dispatch_dtype == "fp8" else 2
    rows = {
        "dispatch": narrow * dim + (WEIGHT_BYTES + NUMBER_BYTES) * top_k,
        "combine": 2 * dim,
        "combine_back": narrow * dim,
        "dispatch_back": 2 * dim + WEIGHT_BYTES * top_k,
    }
    each = Bytes(copies.network * tokens, copies.nvlink * tokens)
    return {name: each * row for name, row in rows.items()}


def exchange_seconds(config: Config, mesh: Mesh, machine: Machine) -> Exchanges:
    """How long the four take when nothing else is on the links."""
    each = exchange_bytes(config, mesh, machine)
    return Exchanges(**{name: sent.seconds(machine) for name, sent in each.items()})


def tokens_of_micro_batch(config: Config, mesh: Mesh) -> int:
    rows = mesh.data * config.pipeline.micro_batches
    return config.data.global_batch * config.data.sequence_length // rows


def message_bytes(config: Config, mesh: Mesh) -> float:
    """A message of the pipeline: hidden states, or their gradient, in bfloat16."""
    return 2 * tokens_of_micro_batch(config, mesh) * config.model.dim


def pipeline_link(mesh: Mesh, machine: Machine) -> float:
    """Bytes per second between neighbours in a pipeline: data ranks lie between them."""
    if mesh.data >= machine.gpus_per_node:
        return machine.network * NETWORK_EFFICIENCY
    return machine.nvlink * NVLINK_EFFICIENCY
