"""How long computing takes by the rates of a GPU, at the shares of them that its kernels reach.

Products take their FLOPs at a share of the peak of their type, attention without weights at a share
of bfloat16's, the small kernels the bytes that they move at a share of the memory's bandwidth. The
shares are those that DeepSeek's trace shows of an H800, kind by kind and phase by phase: so the
roofline of V3 on an H800 is the trace, and that of another model or GPU scales it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trainer.config.schema import ModelConfig, RecomputeConfig
from trainer.plan.datasheets import DATASHEETS, Machine
from trainer.plan.flops import layer_flops
from trainer.plan.trace import HALVES, Half, Times, read_trace

CORE_BACKWARD = 2.6
"""FLOPs of attention's backward over its forward's, for V3's widths of heads: five products, of
which two are the forward's."""

Work: TypeAlias = Times
"""FLOPs, or bytes, of F, I and W."""


@dataclass(frozen=True)
class HalfWork:
    """Of half a layer and one token: FLOPs of products with weights, FLOPs of attention without
    them, bytes of small kernels."""

    products: Work
    core: Work
    small: Work


@dataclass(frozen=True)
class Roofline:
    """linear: type of the products of layers. product_sms: share of the multiprocessors that
    products have while the others send."""

    model: ModelConfig
    recompute: RecomputeConfig
    linear: Literal["bfloat16", "fp8"]
    machine: Machine
    product_sms: float

    def attention(self, tokens: int, sequence_length: int) -> Times:
        """The half with attention, norms, residual sums and router."""
        return self._half("attention", tokens, sequence_length, self.model.dense_layers)

    def experts(self, tokens: int, sequence_length: int) -> Times:
        """Routed and shared experts, all of whose tokens arrive evenly."""
        return self._half("mlp", tokens, sequence_length, self.model.dense_layers)

    def dense(self, tokens: int, sequence_length: int) -> Times:
        """The MLP of a dense layer."""
        return self._half("mlp", tokens, sequence_length, 0)

    def mtp_projection(self, tokens: int) -> Times:
        """The two norms and the projection in front of an MTP module's layer."""
        return self._plain(2 * 2 * self.model.dim**2, 10 * self.model.dim, tokens)

    def head(self, tokens: int) -> Times:
        """The output head and its loss: logits in bfloat16, their softmax in float32."""
        return self._plain(
            2 * self.model.dim * self.model.vocab_size, 10 * self.model.vocab_size, tokens
        )

    def embedding(self, tokens: int) -> Times:
        return self._plain(0, 4 * self.model.dim, tokens)

    def _half(self, half: Half, tokens: int, sequence_length: int, layer: int) -> Times:
        work, shares = (
            half_work(self.model, self.recompute, half, sequence_length, layer),
            _shares(),
        )
        peak = self.machine.fp8 if self.linear == "fp8" else self.machine.bf16
        return (
            self._times(work.products, peak * self.product_sms, self._product_shares(half), tokens)
            + self._times(work.core, self.machine.bf16, shares.core, tokens)
            + self._times(work.small, self.machine.memory_bandwidth, shares.small[half], tokens)
        )

    def _product_shares(self, half: Half) -> Times:
        shares = _shares()
        if self.linear == "fp8":
            return shares.products[half]
        return Times(shares.bfloat16, shares.bfloat16, shares.bfloat16)

    def _plain(self, flops: float, small: float, tokens: int) -> Times:
        """A product in bfloat16, the same in each phase, and small kernels in F and I."""
        shares = _shares()
        share = shares.bfloat16
        rate = self.machine.bf16 * self.product_sms
        bandwidth = self.machine.memory_bandwidth
        return self._times(Work(flops, flops, flops), rate, Times(share, share, share), tokens) + (
            self._times(Work(small, small, 0.0), bandwidth, shares.small["mlp"], tokens)
        )

    def _times(self, work: Work, rate: float, shares: Times, tokens: int) -> Times:
        return Times(*(
            tokens * amount / (rate * share) if amount else 0.0
            for amount, share in zip(work.each, shares.each)
        ))  # fmt: skip


def half_work(
    model: ModelConfig, recompute: RecomputeConfig, half: Half, sequence_length: int, layer: int
) -> HalfWork:
    """Of layer `layer`, in the order of its numbers: dense layers come first."""
    flops = layer_flops(model, layer, sequence_length)
    if half == "mlp":
        forward = flops.dense + flops.shared + flops.routed
        again = forward if recompute.layer else 0.0
        small = _mlp_bytes(model, layer)
        small_again = small if recompute.layer else 0.0
        return HalfWork(
            Work(forward, forward + again, forward), Work(), Work(small, small + small_again, 0.0)
        )
    a = model.attention
    up = 2 * a.kv_lora_rank * a.heads * (a.nope_head_dim + a.v_head_dim)
    up += 2 * (a.q_lora_rank or 0) * a.heads * (a.nope_head_dim + a.rope_head_dim)
    again = flops.projections if recompute.layer else up if recompute.mla_up else 0.0
    core_again = flops.attention if recompute.layer else 0.0
    small = _attention_bytes(model)
    return HalfWork(
        Work(flops.projections, flops.projections + again, flops.projections),
        Work(flops.attention, CORE_BACKWARD * flops.attention + core_again, 0.0),
        Work(small, small + (small if recompute.layer else 0.0), 0.0),
    )


def _attention_bytes(model: ModelConfig) -> float:
    """Read and written per token by small kernels of a forward, in bfloat16: two norms and a
    residual sum; norms of latents; rotation and joining of queries and keys; and each input of a
    product once more for its quantisation."""
    a = model.attention
    latents, joined = (a.q_lora_rank or 0) + a.kv_lora_rank, a.nope_head_dim + a.rope_head_dim
    heads = a.heads * (8 * joined + 2 * a.nope_head_dim + 3 * a.v_head_dim)
    return 17 * model.dim + 7 * latents + heads


def _mlp_bytes(model: ModelConfig, layer: int) -> float:
    """The same: the residual sum; SwiGLU; rows sorted by expert and summed by token again."""
    moe = model.moe
    if layer < model.dense_layers:
        return 6 * model.dim + 6 * model.dense_dim
    inner = (moe.top_k + moe.shared_experts) * moe.expert_dim
    return 6 * model.dim + 6 * inner + 8 * moe.top_k * model.dim


@dataclass(frozen=True)
class _Shares:
    """Of the peak rates, per multiprocessor at work: products in fp8, by half; small kernels, by
    half; attention without weights. bfloat16: of the largest product, of the peak of its own type;
    products in bfloat16 are taken to reach the same of theirs."""

    products: Mapping[Half, Times]
    small: Mapping[Half, Times]
    core: Times
    bfloat16: float


@functools.cache
def _shares() -> _Shares:
    trace = read_trace()
    config, machine = trace.config, DATASHEETS[trace.config.cluster.gpu]
    tokens = config.data.sequence_length
    rate = machine.fp8 * trace.product_sms
    products, small, core = {}, {}, Times()
    for half in HALVES:
        work = half_work(config.model, config.recompute, half, tokens, 0)
        rest = trace.compute[half] - trace.products[half] - trace.core[half]
        products[half] = _share(work.products, trace.products[half], tokens, rate)
        small[half] = _share(work.small, rest, tokens, machine.memory_bandwidth)
        core += _share(work.core, trace.core[half], tokens, machine.bf16)
    a, dim = config.model.attention, config.model.dim
    largest = 2 * a.heads * a.v_head_dim * dim * tokens
    return _Shares(products, small, core, largest / (trace.largest_product * rate))


def _share(work: Work, seconds: Times, tokens: int, rate: float) -> Times:
    return Times(*(
        amount * tokens / (time * rate) if amount else 0.0
        for amount, time in zip(work.each, seconds.each)
    ))  # fmt: skip
