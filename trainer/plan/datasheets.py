"""GPUs by their public datasheets, and the machines of a config.

Rates are of dense products: datasheets print those with sparsity, which are twice as high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.schema import ClusterConfig

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Machine:
    """One GPU and its links. memory: bytes. rates: FLOP/s; bandwidths: bytes per second, links one
    way. watts: of the GPU; overhead_watts: its share of the rest of the node. source: of these."""

    gpu: str
    gpus_per_node: int
    memory: float
    bf16: float
    fp8: float
    memory_bandwidth: float
    nvlink: float
    network: float
    sms: int
    watts: float
    overhead_watts: float
    source: str


_DGX_H100 = "the rest of a DGX H100 of 10.2 kW"
# Memory is what nvidia-smi shows, in MiB: part of the datasheet's is kept for error correction.
DATASHEETS: Mapping[str, Machine] = {
    "h800": Machine(
        "h800", 8, 81_559 * MIB, 989.4e12, 1978.9e12, 3.35e12, 200e9, 50e9, 132, 700.0, 575.0,
        "NVIDIA H100 SXM datasheet; NVLink 400 GB/s both ways and one 400 Gbit/s InfiniBand card "
        f"per GPU by arXiv 2505.09343, sections 4.1 and 5.1; {_DGX_H100}",
    ),
    "h100": Machine(
        "h100", 8, 81_559 * MIB, 989.4e12, 1978.9e12, 3.35e12, 450e9, 50e9, 132, 700.0, 575.0,
        f"NVIDIA H100 SXM datasheet; DGX H100 datasheet: eight 400 Gbit/s cards; {_DGX_H100}",
    ),
    "h200": Machine(
        "h200", 8, 143_771 * MIB, 989.4e12, 1978.9e12, 4.8e12, 450e9, 50e9, 132, 700.0, 575.0,
        f"NVIDIA H200 SXM datasheet; eight 400 Gbit/s cards per node; {_DGX_H100}",
    ),
    "b200": Machine(
        "b200", 8, 183_359 * MIB, 2250e12, 4500e12, 7.7e12, 900e9, 50e9, 148, 1000.0, 790.0,
        "NVIDIA Blackwell datasheet, HGX B200; DGX B200 datasheet: 14.3 kW, eight 400 Gbit/s cards",
    ),
    "gb200": Machine(
        "gb200", 72, 189_471 * MIB, 2500e12, 5000e12, 8e12, 900e9, 50e9, 152, 1200.0, 467.0,
        "NVIDIA Blackwell datasheet, GB200 NVL72: 120 kW per rack of 72; one 400 Gbit/s card per "
        "GPU",
    ),
}  # fmt: skip


def machine_of(cluster: ClusterConfig) -> Machine:
    """The datasheet of `cluster.gpu`, with what the config says otherwise."""
    sheet = DATASHEETS[cluster.gpu]

    def given(value: float | None, unit: float, default: float) -> float:
        return default if value is None else value * unit

    return Machine(
        gpu=cluster.gpu,
        gpus_per_node=cluster.gpus_per_node or sheet.gpus_per_node,
        memory=given(cluster.memory_gib, GIB, sheet.memory),
        bf16=given(cluster.bf16_tflops, 1e12, sheet.bf16),
        fp8=given(cluster.fp8_tflops, 1e12, sheet.fp8),
        memory_bandwidth=given(cluster.memory_gb_s, 1e9, sheet.memory_bandwidth),
        nvlink=given(cluster.nvlink_gb_s, 1e9, sheet.nvlink),
        network=given(cluster.network_gb_s, 1e9, sheet.network),
        sms=sheet.sms,
        watts=given(cluster.watts, 1, sheet.watts),
        overhead_watts=given(cluster.overhead_watts, 1, sheet.overhead_watts),
        source=sheet.source,
    )
