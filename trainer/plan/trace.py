"""DeepSeek's published trace of training on an H800: measured times of a layer of DeepSeek-V3, and
the shares of the GPU's peak rates that its kernels reach.

data/deepseek_h800_trace.json has the figures and their public source.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trainer.config.schema import (
    AttentionConfig,
    ClusterConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    PipelineConfig,
    PlanConfig,
    RecomputeConfig,
)
from trainer.plan.traffic import Exchanges

FILE = Path(__file__).parent / "data" / "deepseek_h800_trace.json"

Half: TypeAlias = Literal["attention", "mlp"]
"""Of a layer: attention has the norms, the residual sums and the router, too."""
HALVES: tuple[Half, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Times:
    """Computing, in seconds: F, I and W."""

    forward: float = 0.0
    input_gradient: float = 0.0
    weight_gradient: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(*(a + b for a, b in zip(self.each, other.each)))

    def __sub__(self, other: Times) -> Times:
        return Times(*(a - b for a, b in zip(self.each, other.each)))

    @property
    def each(self) -> tuple[float, float, float]:
        return self.forward, self.input_gradient, self.weight_gradient


@dataclass(frozen=True)
class Trace:
    """Of one MoE layer and micro-batch, seconds.

    config: of the layers that were traced, and of one micro-batch. products: with weights; core: of
    attention without any; what is left of compute are small kernels. product_sms: share of the
    multiprocessors that products had, since the others sent. exchanges: without waits for other
    ranks. pair: of the pair of `layers` layers.
    """

    config: Config
    layers: int
    product_sms: float
    pair: float
    compute: Mapping[Half, Times]
    products: Mapping[Half, Times]
    core: Mapping[Half, Times]
    exchanges: Exchanges
    largest_product: float


@functools.cache
def read_trace() -> Trace:
    data = json.loads(FILE.read_text())
    layers = data["layers"]

    def times(us: Mapping[str, float]) -> Times:
        return Times(**{name: value / layers * 1e-6 for name, value in us.items()})

    compute, part_of_it = data["compute_us"], data["of_which_us"]
    payload = data["exchange_payload_us"]
    seconds = {
        f"{name}{suffix}": payload[name][phase] / layers * 1e-6
        for name in ("dispatch", "combine")
        for phase, suffix in (("forward", ""), ("backward", "_back"))
    }
    return Trace(
        config=_traced(data["config"]),
        layers=layers,
        product_sms=data["sms_of_products"] / data["sms"],
        pair=data["pair_us"] * 1e-6,
        compute={half: times(compute[half]) for half in HALVES},
        products={half: times(part_of_it[half]["products"]) for half in HALVES},
        core={half: times(part_of_it[half]["core"]) for half in HALVES},
        exchanges=Exchanges(**seconds),
        largest_product=data["largest_product"]["us"] * 1e-6,
    )


def _traced(values: Mapping[str, Any]) -> Config:
    """The config of the layers that the trace shows, and of one micro-batch of theirs."""
    model, sequence_length = values["model"], values["sequence_length"]
    return Config(
        mesh=MeshConfig(expert=values["expert_ranks"], dispatch_dtype="fp8"),
        pipeline=PipelineConfig(micro_batches=1),
        recompute=RecomputeConfig(norm=True, mla_up=True, swiglu=True),
        model=ModelConfig(
            dim=model["dim"],
            dense_layers=0,
            attention=AttentionConfig(**model["attention"]),
            moe=MoEConfig(**model["moe"]),
        ),
        data=DataConfig(sequence_length=sequence_length, global_batch=values["expert_ranks"]),
        cluster=ClusterConfig(gpu="h800"),
        plan=PlanConfig(linear="fp8", dispatch="deepep"),
    )
