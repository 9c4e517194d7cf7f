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
from typing import Literal, TypeAlias

from trainer.config.schema import AttentionConfig, ModelConfig, MoEConfig
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

    @property
    def each(self) -> tuple[float, float, float]:
        return self.forward, self.input_gradient, self.weight_gradient


@dataclass(frozen=True)
class Trace:
    """Of one MoE layer and micro-batch, seconds.

    model: only what a layer is made of. products: with weights; core: of attention without any;
    what is left of compute are small kernels. product_sms: share of the multiprocessors that
    products had, since the others sent. exchanges: without waits for other ranks. pair: of the pair
    of `layers` layers.
    """

    model: ModelConfig
    expert_ranks: int
    sequence_length: int
    layers: int
    tokens: int
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
    model = data["model"]
    return Trace(
        model=ModelConfig(
            dim=model["dim"],
            dense_layers=0,
            attention=AttentionConfig(**model["attention"]),
            moe=MoEConfig(**model["moe"]),
        ),
        expert_ranks=data["expert_ranks"],
        sequence_length=data["sequence_length"],
        layers=layers,
        tokens=data["tokens"],
        product_sms=data["sms_of_products"] / data["sms"],
        pair=data["pair_us"] * 1e-6,
        compute={half: times(compute[half]) for half in HALVES},
        products={half: times(part_of_it[half]["products"]) for half in HALVES},
        core={half: times(part_of_it[half]["core"]) for half in HALVES},
        exchanges=Exchanges(**seconds),
        largest_product=data["largest_product"]["us"] * 1e-6,
    )
