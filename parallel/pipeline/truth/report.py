"""What a truth test has found: as tables, and as plain values."""

from __future__ import annotations

import dataclasses

from rich.table import Table
from rich.text import Text

from parallel.pipeline.truth.results import Comparison, Truth


def as_json(truths: list[Truth], comparisons: list[Comparison]) -> dict[str, object]:
    """What `--json` prints; times in seconds."""
    return {
        "truth": {
            truth.name: {**_fields(truth), "ratio": truth.ratio, "median_ratio": truth.median_ratio}
            for truth in truths
        },
        "torch": {comparison.name: _fields(comparison) for comparison in comparisons},
    }


def _fields(result: Truth | Comparison) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "name"}


def truth_table(truths: list[Truth], title: str, within: float) -> Table:
    """within: how far a run may be from its simulation, in per cent; others are marked."""
    table = Table(title=Text(f"executor and simulation: {title}"))
    table.add_column("schedule")
    for column in ("simulated s", "best s", "ratio", "median", "in items", "in messages"):
        table.add_column(column, justify="right")
    for truth in truths:
        off = abs(truth.ratio - 1) > within / 100
        table.add_row(
            truth.name,
            f"{truth.simulated:.3f}",
            f"{min(truth.measured):.3f}",
            f"{truth.ratio:.4f}{' !' * off}",
            f"{truth.median_ratio:.4f}",
            f"{100 * truth.in_items:+.1f} %",
            f"{100 * truth.in_messages:+.1f} %",
        )
    return table


def torch_table(comparisons: list[Comparison], title: str) -> Table:
    """The executor's times beside torch's."""
    table = Table(title=Text(f"executor and torch.distributed.pipelining: {title}"))
    table.add_column("schedule")
    for column in (
        "simulated s",
        "torch s",
        "gradient last s",
        "gradient first s",
        "first / simulated",
    ):
        table.add_column(column, justify="right")
    for c in comparisons:
        torch, ours, first = min(c.torch), min(c.ours), min(c.gradients_first)
        table.add_row(
            c.name,
            f"{c.simulated:.3f}",
            f"{torch:.3f}",
            f"{ours:.3f} ({100 * (ours / torch - 1):+.1f} %)",
            f"{first:.3f} ({100 * (first / torch - 1):+.1f} %)",
            f"{first / c.simulated_gradients_first:.4f}",
        )
    table.caption = "best of the repeats; in brackets ours against torch"
    return table
