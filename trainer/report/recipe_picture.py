"""The picture of a recipe: each of its values over the tokens of the run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parallel.files.outputs import write_file
from trainer.recipe.recipe import Recipe
from trainer.recipe.table import rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
_PER_ROW = 300  # points of a value that moves
_PANELS = (
    ("learning_rate", "learning rate"),
    ("sequences", "batch, sequences"),
    ("bias_gamma", "router gamma"),
    ("balance_alpha", "balance alpha"),
    ("mtp_weight", "MTP weight"),
)


def save_recipe_picture(recipe: Recipe, path: Path) -> None:
    """Draw it into a PNG or an SVG. Raises WriteError where that cannot be written."""
    import matplotlib

    content = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "recipe", "svg.fonttype": "none"}):
        metadata = {"Date": None} if kind == "svg" else None  # the same file every time
        draw(recipe).savefig(content, format=kind, dpi=110, metadata=metadata)
    write_file(path, content.getvalue())


def draw(recipe: Recipe) -> Figure:
    """A panel for each value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    steps = list(_steps(recipe))
    starts = [recipe.plan.before_step(step) for step in steps]
    values = [recipe.at(start) for start in starts]
    grid = figure.subplots(len(_PANELS), sharex=True, height_ratios=(2, 2, 1, 1, 1))
    for axes, (name, title) in zip(grid, _PANELS):
        tokens = [start.tokens for start in starts]
        axes.step(tokens, [getattr(value, name) for value in values], where="post")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
    grid[-1].xaxis.set_major_formatter(EngFormatter(sep="", places=None))
    grid[-1].set_xlabel(f"tokens; {recipe.plan.end.step:,} steps", fontsize=9)
    return figure


def _steps(recipe: Recipe) -> Iterator[int]:
    """Enough steps of each row for a smooth line."""
    for row in rows(recipe):
        count = 1 if row.first == row.last else _PER_ROW
        spread = np.linspace(row.start_step, row.end_step - 1, count).round()
        yield from (int(step) for step in np.unique(spread))
    yield recipe.plan.end.step - 1
