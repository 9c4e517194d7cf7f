"""How long each part of a stage takes, from the source that `plan.costs` names."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.ranks.mesh import Mesh
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.plan.datasheets import Machine
from trainer.plan.roofline import Roofline
from trainer.plan.trace import Times, Trace, read_trace
from trainer.plan.traffic import Exchanges, exchange_seconds, tokens_of_micro_batch


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


def stage_parts(config: Config, mesh: Mesh, machine: Machine) -> StageParts:
    """Raises ConfigError where the trace is asked about another model, GPU or size."""
    tokens, length = tokens_of_micro_batch(config, mesh), config.data.sequence_length
    share = 1 - config.cluster.communication_sms / machine.sms if mesh.expert > 1 else 1.0
    roofline = Roofline(config.model, config.recompute, config.plan.linear, machine, share)
    attention, experts = roofline.attention(tokens, length), roofline.experts(tokens, length)
    exchanges = Exchanges(0.0, 0.0, 0.0, 0.0)
    if mesh.expert > 1:
        exchanges = exchange_seconds(config, mesh, machine)
    if config.plan.costs == "deepseek-h800":
        trace = read_trace()
        _require_what_was_traced(config, mesh, trace)
        attention, experts = trace.compute["attention"], trace.compute["mlp"]
        exchanges = trace.exchanges
    return StageParts(
        attention=attention,
        experts=experts,
        dense=roofline.dense(tokens, length),
        exchanges=exchanges,
        mtp_projection=roofline.mtp_projection(tokens),
        head=roofline.head(tokens),
        embedding=roofline.embedding(tokens),
    )


def _require_what_was_traced(config: Config, mesh: Mesh, trace: Trace) -> None:
    model, moe, recompute = config.model, config.model.moe, config.recompute
    traced = trace.model.moe
    for key, value, there in (
        ("cluster.gpu", config.cluster.gpu, "h800"),
        ("plan.linear", config.plan.linear, "fp8"),
        ("plan.dispatch", config.plan.dispatch, "deepep"),
        ("mesh.expert", mesh.expert, trace.expert_ranks),
        ("tokens per micro-batch", tokens_of_micro_batch(config, mesh), trace.tokens),
        ("data.sequence_length", config.data.sequence_length, trace.sequence_length),
        ("model.dim", model.dim, trace.model.dim),
        ("model.attention", model.attention, trace.model.attention),
        ("model.moe.experts", moe.experts, traced.experts),
        ("model.moe.shared_experts", moe.shared_experts, traced.shared_experts),
        ("model.moe.top_k", moe.top_k, traced.top_k),
        ("model.moe.expert_dim", moe.expert_dim, traced.expert_dim),
        ("recompute.norm", recompute.norm, True),
        ("recompute.mla_up", recompute.mla_up, True),
        ("recompute.swiglu", recompute.swiglu, True),
        ("recompute.layer", recompute.layer, False),
    ):
        if value != there:
            raise ConfigError(
                f"plan.costs = deepseek-h800 was measured with {key} = {there}, not {value}: set "
                "plan.costs to roofline, which scales it"
            )
