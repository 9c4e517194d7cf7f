"""A recipe as a table: from where to where a run's steps are made alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from trainer.recipe.recipe import CURVES, Recipe, StepRecipe

_SIZES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_COLUMNS = ("from step", "tokens", "learning rate", "batch", "gamma", "alpha", "mtp weight")


@dataclass(frozen=True)
class Row:
    """Steps within one phase of everything. start_step, end_step: the first, and the one after the
    last. start_tokens, end_tokens: before and after them. first, last: what these two are made
    with."""

    start_step: int
    end_step: int
    start_tokens: int
    end_tokens: int
    first: StepRecipe
    last: StepRecipe


def rows(recipe: Recipe) -> list[Row]:
    """All steps of a run, in order. As long as it takes for the phases, however many steps."""
    plan = recipe.plan
    starts = {stretch.start.step for stretch in plan.stretches}
    for curve in recipe.curves.values():
        starts |= {plan.first_step_at(span.end) for span in curve.spans}
    bounds = sorted({start for start in starts if start < plan.end.step} | {plan.end.step})
    found = []
    for start, end in pairwise(bounds):
        before, after = plan.before_step(start), plan.before_step(end)
        first, last = recipe.at(before), recipe.at(plan.before_step(end - 1))
        found.append(Row(start, end, before.tokens, after.tokens, first, last))
    return found


def as_json(recipe: Recipe) -> dict[str, Any]:
    end = recipe.plan.end
    return {
        "rows": [asdict(row) for row in rows(recipe)],
        "steps": end.step,
        "sequences": end.sequences,
        "tokens": end.tokens,
    }


def as_lines(recipe: Recipe) -> Iterator[str]:
    """The table, for a person. A value that moves within a row is shown at both its ends."""
    cells = [list(_COLUMNS), *(_cells(row) for row in rows(recipe))]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths))
    end = recipe.plan.end
    yield f"{end.step:,} steps, {end.sequences:,} sequences, {end.tokens:,} tokens"


def _cells(row: Row) -> list[str]:
    moved = [_moved(getattr(row.first, name), getattr(row.last, name)) for name in CURVES]
    rate, gamma, alpha, mtp = moved
    batch = f"{row.first.sequences:,}"
    return [f"{row.start_step:,}", counted(row.start_tokens), rate, batch, gamma, alpha, mtp]


def _moved(first: float, last: float) -> str:
    return f"{first:.3g}" if first == last else f"{first:.3g} to {last:.3g}"


def counted(tokens: int) -> str:
    """In four digits: 469.3B."""
    for size, letter in _SIZES:
        if tokens >= size:
            return f"{tokens / size:.4g}{letter}"
    return str(tokens)
