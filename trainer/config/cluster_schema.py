"""The sections of a config that only the planner reads: the machines, and what it assumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from trainer.config.limits import LINE, Range, Text

GPU: TypeAlias = Literal["h800", "h100", "h200", "b200", "gb200"]

STRETCH = Text(
    r"\d{1,9} steps of \d{1,9} sequences of \d{1,9} tokens",
    "like `1000 steps of 1920 sequences of 32768 tokens`",
)


@dataclass
class ClusterConfig:
    """The machines of a run: for the planner, but for communication_sms, which a run reads, too.
    What is null comes from the datasheet of the GPU."""

    gpu: GPU = "h800"
    """Kind of GPU; `launch/plan.py --help` lists its datasheets."""
    gpus_per_node: Annotated[int | None, Range(1, 1024)] = None
    """GPUs that NVLink joins."""
    memory_gib: Annotated[float | None, Range(above=0, most=1e6)] = None
    """Memory of a GPU that a process can use."""
    bf16_tflops: Annotated[float | None, Range(above=0, most=1e9)] = None
    """Peak rate of dense products in bfloat16."""
    fp8_tflops: Annotated[float | None, Range(above=0, most=1e9)] = None
    """Peak rate of dense products in fp8."""
    memory_gb_s: Annotated[float | None, Range(above=0, most=1e9)] = None
    """Bandwidth of the memory of a GPU, 10^9 bytes per second."""
    nvlink_gb_s: Annotated[float | None, Range(above=0, most=1e9)] = None
    """Bandwidth of NVLink from one GPU, one way."""
    network_gb_s: Annotated[float | None, Range(above=0, most=1e9)] = None
    """Bandwidth of the network between nodes per GPU, one way."""
    communication_sms: Annotated[int, Range(0, 1000)] = 20
    """Multiprocessors lent to all-to-alls (20 in DeepSeek-V3, section 3.2.2); NCCL's limit in a
    run, where 0 leaves it to NCCL."""
    price: Annotated[float, Range(0, 1e6)] = 2.0
    """Dollars per GPU-hour."""
    watts: Annotated[float | None, Range(0, 1e6)] = None
    """Power of a GPU under load; its share of the rest of the node comes on top."""
    overhead_watts: Annotated[float | None, Range(0, 1e6)] = None
    """Share of one GPU in the power of processors, network and fans of its node."""
    pue: Annotated[float, Range(1, 10)] = 1.3
    """Power of the data centre over that of its machines."""


@dataclass
class PlanConfig:
    """What the planner assumes of a run beyond its config."""

    linear: Literal["bfloat16", "fp8"] | None = None
    """Type of the products whose time the plan counts where it is not that of the run, which
    precision.linear names."""
    dispatch: Literal["all_to_all", "hierarchical", "deepep"] | None = None
    """Way of tokens to their experts where it is not that of the run, mesh.dispatch."""
    costs: Annotated[str, LINE] = "roofline"
    """Source of the times of layers: roofline (rates of the GPU, with stated efficiencies),
    deepseek-h800 (DeepSeek's published trace), or a file of `launch/throughput.py --save-costs`."""
    context_extension: Annotated[list[str] | None, STRETCH] = None
    """Training on longer sequences after pre-training, each as `1000 steps of 1920 sequences of
    32768 tokens`."""
    post_training_gpu_hours: Annotated[float, Range(0, 1e12)] = 0.0
    """GPU-hours of post-training, which the planner does not predict."""
    memory_margin: Annotated[float, Range(0, 1)] = 0.05
    """Share of a GPU's memory left free for fragmentation."""
