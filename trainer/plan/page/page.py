"""A plan as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parallel.schedule.table import actions
from parallel.study.timeline import Timeline
from trainer.config.keys import values
from trainer.io.page.fill import filled
from trainer.plan.as_json import as_json, memory_parts
from trainer.plan.datasheets import GIB
from trainer.plan.plan import Plan
from trainer.plan.run_cost import Stretch
from trainer.plan.sweep import Choice, Variant
from trainer.plan.sweep_table import FIGURES, figures
from trainer.plan.tables import heading

DEFAULT_SWEEP = ("pipeline.schedule=dualpipe,dualpipev,zbv,zb-h1,1f1b,interleaved",)
"""What if, where nobody asks otherwise."""
HERE = Path(__file__).parent
ASSUMED = ("cluster.", "plan.", "mesh.", "pipeline.", "recompute.", "precision.", "optimizer.zero")


def page(plan: Plan, choices: Sequence[Choice], variants: Sequence[Variant], config: str) -> str:
    """The page. variants: of a sweep over `choices`. config: the whole config as YAML."""
    data = {
        **as_json(plan),
        "setting": heading(plan),
        "price": plan.config.cluster.price,
        "source": plan.machine.source,
        "stretches": _stretches(plan),
        "timeline": _timeline(plan.step.timeline),
        "memory": {
            "limit": plan.machine.memory / GIB,
            "ranks": [memory_parts(rank) for rank in plan.memory],
        },
        "what_if": {
            "keys": [choice.key for choice in choices],
            "head": list(FIGURES),
            "rows": [{"values": each.texts, "figures": figures(each)} for each in variants],
        },
        "assumptions": [
            [key.name, "null" if value is None else str(value)]
            for key, value in values(plan.config)
            if key.name.startswith(ASSUMED)
        ],
        "config": config,
    }
    return filled(HERE, data)


def _timeline(timeline: Timeline) -> dict[str, Any]:
    """ranks: items as [start, end, action, ...], actions as [kind, stage, micro-batch, flow]."""
    return {
        "seconds": timeline.makespan,
        "flows": timeline.schedule.flows,
        "optimizer": timeline.optimizer,
        "ranks": [
            [
                [
                    round(span.start, 6),
                    round(span.end, 6),
                    *([a.kind, a.stage, a.micro_batch, a.flow] for a in actions(span.item)),
                ]
                for span in spans
            ]
            for spans in timeline.by_rank
        ],
    }


def _stretches(plan: Plan) -> list[dict[str, Any]]:
    cost = plan.cost

    def rows(name: str, stretches: Sequence[Stretch]) -> list[dict[str, Any]]:
        return [
            {
                "of": name,
                **vars(each),
                "gpu_hours": each.steps * each.step_seconds * cost.gpus / 3600,
            }
            for each in stretches
        ]

    extension = rows("context extension", cost.context_extension)
    return rows("pre-training", cost.pre_training) + extension
