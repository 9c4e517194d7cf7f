"""The picture of runs: their losses large, what else tells of their health beside it, and their
events as marks on both."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parallel.files.shown import printable
from trainer.errors import RunError
from trainer.io.no_links import create
from trainer.report.marks import draw_legend, draw_marks
from trainer.report.run_log import RunLog, Series, read_run, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "run.png"
_BINS = 250  # points of a line: more steps than that are drawn as means, with their range
_MOST_NAMES, _NAME_LENGTH = 12, 60  # in the legend
_PANELS = (  # key, title, place in a grid of 3 x 3
    ("learning_rate", "learning rate", (0, 2)),
    ("gradient_norm", "gradient norm, before clipping", (1, 2)),
    ("balance", "balance (1 is even)", (2, 0)),
    ("load_max", "load max: busiest expert / mean", (2, 1)),
    ("tokens_per_second", "tokens/s", (2, 2)),
)


class Points(NamedTuple):
    """All [n]: where, the mean there, and the range."""

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def draw_own_run(folder: Path) -> str:
    """Draw a run into its folder; one line that says where, or why not. Never fails the run."""
    try:
        save_picture([read_run(folder)], folder / PICTURE)
    except Exception as error:
        return f"no picture of the run: {' '.join(str(error).split())}"
    return f"picture in {folder / PICTURE}"


def save_picture(runs: Sequence[RunLog], path: Path) -> None:
    """Draw runs over each other into a PNG. Raises RunError where it cannot be written."""
    save_figure(lambda: draw(runs), path)


def save_figure(draw_it: Callable[[], Figure], path: Path) -> None:
    """Draw into a PNG. Raises RunError where it cannot be written."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters of names that the font lacks
        draw_it().savefig(content, format="png", dpi=110)
    part = path.with_name(f".{os.getpid()}{path.suffix}")
    try:
        try:
            create(part, content.getvalue())
            part.replace(path)  # whoever looks at the file sees it whole
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{printable(path)}: cannot be written: {error.strerror}") from error


def draw(runs: Sequence[RunLog]) -> Figure:
    """The picture of runs, each in a colour of its own."""
    # Only here: it is slow to import, and a run that is not drawn does not need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3)
    axes = figure.add_subplot(grid[:2, :2])
    _panel(axes, runs, "loss", "loss, nats per token (points: validation)")
    for run, colour in zip(runs, _colours(len(runs))):
        if (validation := run.series.get("validation_loss")) is not None:
            axes.plot(validation.steps, validation.values, "o", color=colour, mec="white", ms=7)
    _legend(axes, runs)
    draw_legend(axes, runs)
    for key, title, (row, column) in _PANELS:
        _panel(figure.add_subplot(grid[row, column]), runs, key, title)
    return figure


def points(series: Series) -> Points:
    """At most so many points; each the mean and the range of its steps, NaN left out."""
    kept = np.isfinite(series.values)
    steps, values = series.steps[kept].astype(np.float64), series.values[kept]
    parts = [p for p in np.array_split(np.arange(values.size), _BINS) if p.size]
    return Points(
        np.array([steps[p].mean() for p in parts]),
        np.array([values[p].mean() for p in parts]),
        np.array([values[p].min() for p in parts]),
        np.array([values[p].max() for p in parts]),
    )


def _panel(axes: Axes, runs: Sequence[RunLog], key: str, title: str) -> None:
    empty = True
    for run, colour in zip(runs, _colours(len(runs))):
        if key not in run.series:
            continue
        drawn = points(run.series[key])
        style: dict[str, Any] = {"marker": "."} if drawn.steps.size == 1 else {}
        axes.plot(drawn.steps, drawn.mean, color=colour, linewidth=1.3, **style)
        axes.fill_between(drawn.steps, drawn.low, drawn.high, color=colour, alpha=0.2, linewidth=0)
        draw_marks(axes, run, key, colour, checkpoints=key == "loss")
        empty = empty and not drawn.steps.size
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if empty:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="grey")


def _legend(axes: Axes, runs: Sequence[RunLog]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour) for colour in _colours(len(runs))][:_MOST_NAMES]
    # Texts are set afterwards: matplotlib reads a name as a formula, or hides one with a `_`.
    legend = axes.legend(lines, ["run"] * len(lines), loc="upper right", fontsize=9, frameon=False)
    for text, name in zip(legend.get_texts(), map(printable, short_names(runs))):
        text.set_parse_math(False)
        text.set_text(name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}")
    if len(runs) > _MOST_NAMES:
        legend.set_title(f"the first {_MOST_NAMES} of {len(runs)} runs")


def _colours(count: int) -> list[str]:
    return [f"C{number % 10}" for number in range(count)]
