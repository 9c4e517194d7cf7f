"""The plans of a sweep, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from trainer.plan.as_json import as_json
from trainer.plan.datasheets import GIB
from trainer.plan.sweep import Choice, Variant

FIGURES = (
    "GPUs", "step, s", "tokens/s/GPU", "MFU", "bubble", "GPU-hours per T tokens", "GiB", "problem",
)  # fmt: skip


def sweep_table(choices: Sequence[Choice], variants: Sequence[Variant]) -> Table:
    """A row for each combination, best first."""
    table = Table(title="What if, best first", title_justify="left")
    for choice in choices:
        table.add_column(choice.key.split(".")[-1])
    for name in FIGURES:
        table.add_column(name, justify="left" if name == "problem" else "right")
    for variant in variants:
        table.add_row(*variant.texts, *figures(variant))
    return table


def figures(variant: Variant) -> list[str]:
    """As text, in the order of FIGURES."""
    plan = variant.plan
    if plan is None:
        return [*[""] * (len(FIGURES) - 1), variant.problem]
    parts = plan.step.parts
    return [
        f"{plan.cost.gpus:,}",
        f"{plan.step.seconds:.3f}",
        f"{plan.rates.tokens_per_second_per_gpu:,.0f}",
        f"{plan.rates.mfu['causal']:.1%}",
        f"{parts.bubble / plan.step.seconds:.1%}",
        f"{plan.cost.gpu_hours_per_trillion_tokens:,.0f}",
        f"{max(rank.total for rank in plan.memory) / GIB:.1f}",
        "" if plan.fits else "does not fit",
    ]


def sweep_json(choices: Sequence[Choice], variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """values: by key. problem: why there is no plan."""
    keys = [choice.key for choice in choices]
    return [
        {
            "values": dict(zip(keys, variant.texts)),
            "problem": variant.problem or None,
            "plan": None if variant.plan is None else as_json(variant.plan),
        }
        for variant in variants
    ]
