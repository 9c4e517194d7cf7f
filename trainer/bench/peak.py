"""The peak rate of a rank, of which MFU is the share: a GPU's by datasheet, a CPU's measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from parallel.ops.precision import PRECISIONS
from parallel.ops.products import linear_product
from parallel.ranks.together import gather, start_together
from trainer.build.layout import Layout
from trainer.plan.datasheets import machine_of

WIDTH = 1024
PRODUCT_SECONDS = 0.4
FEWEST_PRODUCTS = 5


@dataclass(frozen=True)
class Peak:
    """flops: per second, of one rank. source: how that is known."""

    flops: float
    source: str


def peak_of(layout: Layout) -> Peak:
    """Of dense bfloat16 products by the datasheet of `cluster.gpu` on CUDA; on a CPU of products in
    the type of the parameters. Collective."""
    config = layout.config
    if layout.device.type == "cuda":
        sheet, found = machine_of(config.cluster), torch.cuda.get_device_name(layout.device)
        source = f"dense bfloat16 products by the datasheet of cluster.gpu, {sheet.gpu}, on {found}"
        return Peak(sheet.bf16, source)
    name, threads = config.precision.parameters, torch.get_num_threads()
    world = layout.process.world
    by_rank = gather(_product_rate(PRECISIONS[name].parameters, alone=world == 1))
    source = (
        f"measured before the steps, products of two {WIDTH} x {WIDTH} matrices in {name}, "
        f"{threads} {'thread' if threads == 1 else 'threads per rank'}"
    )
    together = f", on all {world} ranks at once (mean)" if world > 1 else ""
    return Peak(statistics.mean(by_rank), source + together)


def _product_rate(dtype: torch.dtype, alone: bool) -> float:
    """FLOP/s of the median product, by what the model multiplies with; all ranks at once."""
    x = torch.randn(WIDTH, WIDTH).to(dtype)
    linear_product(x, x)  # finds its kernel
    if not alone:
        start_together()
    took: list[float] = []
    while len(took) < FEWEST_PRODUCTS or sum(took) < PRODUCT_SECONDS:
        start = time.perf_counter()
        linear_product(x, x)
        took.append(time.perf_counter() - start)
    return 2 * WIDTH**3 / statistics.median(took)
