"""A plan as one JSON object: seconds, GiB, hours, dollars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trainer.plan.datasheets import GIB
from trainer.plan.flops import flops_by_part
from trainer.plan.memory import RankMemory
from trainer.plan.parameters import stage_parameters
from trainer.plan.plan import Plan
from trainer.plan.remedies import Remedy
from trainer.plan.traffic import dispatch_of, linear_of


def memory_parts(rank: RankMemory) -> dict[str, float]:
    """What the memory of a rank's GPU is made of, in GiB."""
    parts = {name: size for name, size in vars(rank).items() if isinstance(size, int)}
    return {name: size / GIB for name, size in parts.items() if name != "host"}


def as_json(plan: Plan, found: Sequence[Remedy] | None = None) -> dict[str, Any]:
    """Keys stay: scripts read them. found: what would make it fit, if that was asked."""
    config, cost = plan.config, plan.cost
    return {
        "name": config.run.name,
        "gpus": cost.gpus,
        "gpu": plan.machine.gpu,
        "schedule": plan.schedule.name,
        "costs": config.plan.costs,
        "linear": linear_of(config),
        "dispatch": dispatch_of(config),
        "parameters": asdict(plan.parameters),
        "parameters_by_rank": [rank.total for rank in plan.ranks],
        "parameters_by_stage": stage_parameters(config, plan.schedule),
        "flops_per_token": {
            name: flops_by_part(config.model, config.data.sequence_length, name == "causal")
            for name in ("causal", "non_causal")
        },
        "bytes_sent_by_rank": [
            {kind: asdict(sent) for kind, sent in traffic.items()} for traffic in plan.traffic
        ],
        "memory_gib_by_rank": [rank.total / GIB for rank in plan.memory],
        "host_gib_by_rank": [rank.host / GIB for rank in plan.memory],
        "memory_parts_gib_by_rank": [memory_parts(rank) for rank in plan.memory],
        "gpu_memory_gib": plan.machine.memory / GIB,
        "fits": plan.fits,
        **({} if found is None else {"remedies": [_remedy(one) for one in found]}),
        "tokens_per_step": plan.rates.tokens_per_step,
        "step_seconds": plan.step.seconds,
        "parts_seconds": asdict(plan.step.parts),
        "parts_seconds_by_rank": [asdict(parts) for parts in plan.step.by_rank],
        "flop_per_byte": plan.rule
        and {
            **asdict(plan.rule),
            "experts_hide_below": plan.rule.experts_hide_below,
            "pair_hides_below": plan.rule.pair_hides_below,
        },
        "mfu": plan.rates.mfu,
        "tflops_per_gpu": plan.rates.tflops_per_gpu,
        "tokens_per_second_per_gpu": plan.rates.tokens_per_second_per_gpu,
        "tokens_per_day": plan.rates.tokens_per_day,
        "gpu_hours": cost.gpu_hours,
        "gpu_hours_per_trillion_tokens": cost.gpu_hours_per_trillion_tokens,
        "days": cost.days,
        "dollars": cost.dollars(config.cluster),
        "mwh": cost.mwh(config.cluster, plan.machine),
    }


def _remedy(one: Remedy) -> dict[str, Any]:
    return {"options": one.options, "memory_gib": one.total / GIB, "fits": one.fits}
