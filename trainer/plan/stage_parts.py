"""How long each part of a stage takes.

Computing by the roofline, which on an H800 is DeepSeek's trace. All-to-alls by the rates of links,
or, where `plan.costs` is deepseek-h800, by those that the trace shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.ranks.mesh import Mesh
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.plan.datasheets import Machine
from trainer.plan.roofline import Roofline
from trainer.plan.trace import Times, Trace, read_trace
from trainer.plan.traffic import (
    Exchanges,
    dispatch_of,
    exchange_seconds,
    linear_of,
    tokens_of_micro_batch,
)

NO_EXCHANGES = Exchanges(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StageParts:
    """Seconds for one micro-batch. attention: the first half of every layer; experts, dense: the
    second of a layer with experts, and of one without. exchanges: the all-to-alls of a layer."""

    attention: Times
    experts: Times
    dense: Times
    exchanges: Exchanges
    mtp_projection: Times
    head: Times
    embedding: Times


def stage_parts(
    config: Config, mesh: Mesh, machine: Machine, sequence_length: int | None = None
) -> StageParts:
    """sequence_length: of sequences longer than the config's, whose parts, of as many tokens as a
    micro-batch has, see all of what comes before them.

    Raises ConfigError where the trace is asked about another layer, GPU or type.
    """
    tokens, length = tokens_of_micro_batch(config, mesh), config.data.sequence_length
    share = 1 - config.cluster.communication_sms / machine.sms if mesh.expert > 1 else 1.0
    roofline = Roofline(config.model, config.recompute, linear_of(config), machine, share)
    return StageParts(
        attention=roofline.attention(tokens, sequence_length or length),
        experts=roofline.experts(tokens, length),
        dense=roofline.dense(tokens, length),
        exchanges=_exchanges(config, mesh, machine),
        mtp_projection=roofline.mtp_projection(tokens),
        head=roofline.head(tokens),
        embedding=roofline.embedding(tokens),
    )


def _exchanges(config: Config, mesh: Mesh, machine: Machine) -> Exchanges:
    """By the links' rates; or as measured, in proportion to what the links would take."""
    if config.plan.costs == "deepseek-h800":
        trace = read_trace()
        _require_what_was_traced(config, trace)
        if mesh.expert > 1:
            return _scaled(trace, exchange_seconds(config, mesh, machine), machine)
    return exchange_seconds(config, mesh, machine) if mesh.expert > 1 else NO_EXCHANGES


def _scaled(trace: Trace, wanted: Exchanges, machine: Machine) -> Exchanges:
    traced = exchange_seconds(trace.config, mesh_of(trace.config), machine)
    return Exchanges(**{
        name: getattr(trace.exchanges, name) * getattr(wanted, name) / getattr(traced, name)
        for name in vars(wanted)
    })  # fmt: skip


def _require_what_was_traced(config: Config, trace: Trace) -> None:
    model, there = config.model, trace.config
    moe, traced = model.moe, trace.config.model.moe
    for key, value, measured in (
        ("cluster.gpu", config.cluster.gpu, there.cluster.gpu),
        ("plan.linear", linear_of(config), linear_of(there)),
        ("plan.dispatch", dispatch_of(config), dispatch_of(there)),
        ("mesh.dispatch_dtype", config.mesh.dispatch_dtype, there.mesh.dispatch_dtype),
        ("model.dim", model.dim, there.model.dim),
        ("model.attention.heads", model.attention.heads, there.model.attention.heads),
        ("model.moe.experts", moe.experts, traced.experts),
        ("model.moe.shared_experts", moe.shared_experts, traced.shared_experts),
        ("model.moe.top_k", moe.top_k, traced.top_k),
        ("model.moe.expert_dim", moe.expert_dim, traced.expert_dim),
    ):
        if value != measured:
            raise ConfigError(
                f"plan.costs = deepseek-h800 was measured with {key} = {measured}, not {value}: "
                "set plan.costs to roofline"
            )
