"""The picture of a timeline, as SVG and PNG: ranks as rows, time to the right.

Colours fall in lightness from F over I and B to W, so they hold in greyscale and for the
colour-blind. An overlapped pair is one cell, the forward above the backward. Numbers are
micro-batches: those of DualPipe's flow 1 are counted on from flow 0's, those of a rank's second
stage on a V are underlined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from parallel.pipeline.schedule import Action, Overlap, Schedule
from parallel.pipeline.simulate import Timeline

COLOURS = {"F": "#fde3a7", "I": "#8cbfe6", "B": "#3d7fb8", "W": "#1d3557"}
INK_ON = {"F": "#2b2b2b", "I": "#14283c", "B": "#ffffff", "W": "#ffffff"}
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
IDLE_FACE, IDLE_LINES = "#ffffff", "#cfcfcf"
EDGE, INK, QUIET = "#5f5f5f", "#2b2b2b", "#6a6a6a"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tandem",  # equal timelines give equal files
    "font.family": "DejaVu Sans",
    "hatch.linewidth": 0.6,
}
ROW_INCHES, CELL_INCHES = 0.36, 0.17
MIN_WIDTH_INCHES, MAX_WIDTH_INCHES = 9.5, 30.0
CELL_HEIGHT = 0.84
NUMBER_POINTS, SMALLEST_POINTS = 8.0, 3.2


class Cell(NamedTuple):
    """An action as a rectangle, in units of time and of rows."""

    action: Action
    left: float
    top: float
    width: float
    height: float


def save(timeline: Timeline, *paths: Path | str) -> None:
    """Draw `timeline` into files, their format by suffix; equal timelines give equal bytes."""
    with mpl.rc_context(STYLE):
        figure = draw(timeline)
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, dpi=160, metadata=metadata, bbox_inches="tight", pad_inches=0.12)


def draw(timeline: Timeline) -> Figure:
    """The picture of `timeline`."""
    schedule = timeline.schedule
    width = _axes_width(timeline)
    figure = Figure(figsize=(width + 1.0, ROW_INCHES * schedule.ranks + 1.5))
    FigureCanvasAgg(figure)
    height = figure.get_figheight()
    axes = figure.add_axes(
        (
            0.7 / figure.get_figwidth(),
            0.75 / height,
            width / figure.get_figwidth(),
            ROW_INCHES * schedule.ranks / height,
        )
    )
    inches_a_unit = width / (timeline.makespan or 1.0)
    cells = list(_cells(timeline))
    _draw_idle(axes, timeline)
    _draw_cells(axes, cells)
    _draw_pairs(axes, timeline)
    _draw_numbers(axes, cells, schedule, inches_a_unit)
    _finish(axes, timeline, figure)
    return figure


def _axes_width(timeline: Timeline) -> float:
    """Wide enough for a number in the narrowest cell, within reason."""
    narrowest = min((c.width for c in _cells(timeline) if c.width > 0), default=1.0)
    return min(MAX_WIDTH_INCHES, max(MIN_WIDTH_INCHES, CELL_INCHES * timeline.makespan / narrowest))


def _cells(timeline: Timeline) -> Iterator[Cell]:
    for rank, item, begin, end in timeline.spans:
        top = rank - CELL_HEIGHT / 2
        if isinstance(item, Overlap):
            half = CELL_HEIGHT / 2
            yield Cell(item.forward, begin, top, end - begin, half)
            yield Cell(item.backward, begin, top + half, end - begin, half)
        else:
            yield Cell(item, begin, top, end - begin, CELL_HEIGHT)


def _box(left: float, top: float, width: float, height: float) -> list[tuple[float, float]]:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _draw_idle(axes: Axes, timeline: Timeline) -> None:
    top = [rank - CELL_HEIGHT / 2 for rank in range(timeline.schedule.ranks)]
    boxes = [_box(0, t, timeline.makespan, CELL_HEIGHT) for t in top]
    axes.add_collection(
        PolyCollection(
            boxes, facecolors=IDLE_FACE, edgecolors=IDLE_LINES, hatch="////", linewidths=0.6
        )
    )


def _draw_cells(axes: Axes, cells: list[Cell]) -> None:
    boxes = defaultdict(list)
    for cell in cells:
        boxes[cell.action.kind].append(_box(*cell[1:]))
    for kind, of_kind in boxes.items():
        axes.add_collection(
            PolyCollection(of_kind, facecolors=COLOURS[kind], edgecolors=EDGE, linewidths=0.4)
        )


def _draw_pairs(axes: Axes, timeline: Timeline) -> None:
    """One strong outline around each pair: it is one cell."""
    boxes = [
        _box(begin, rank - CELL_HEIGHT / 2, end - begin, CELL_HEIGHT)
        for rank, item, begin, end in timeline.spans
        if isinstance(item, Overlap)
    ]
    axes.add_collection(
        PolyCollection(boxes, facecolors="none", edgecolors="#1f1f1f", linewidths=0.9)
    )


def _draw_numbers(axes: Axes, cells: list[Cell], schedule: Schedule, inches_a_unit: float) -> None:
    """Each cell's micro-batch, flow 1's counted on from flow 0's, where it can be read."""
    digits = len(str(schedule.micro_batches - 1))
    for cell in cells:
        action = cell.action
        points = min(
            NUMBER_POINTS,
            0.92 * cell.width * inches_a_unit * 72 / (0.64 * digits),
            0.72 * cell.height * ROW_INCHES * 72,
        )
        if points < SMALLEST_POINTS:
            continue
        number = action.flow * schedule.micro_batches_per_flow + action.micro_batch
        x, y = cell.left + cell.width / 2, cell.top + cell.height / 2
        em_right, em_down = points / 72 / inches_a_unit, points / 72 / ROW_INCHES
        ink = INK_ON[action.kind]
        # Centred by hand on the height of a digit, so that all numbers stand on one line.
        baseline = y + 0.365 * em_down
        axes.text(x, baseline, str(number), color=ink, fontsize=points, ha="center", va="baseline")
        if _is_way_back(schedule, action):
            half = 0.34 * len(str(number)) * em_right
            below = baseline + 0.17 * em_down
            axes.plot([x - half, x + half], [below, below], color=ink, linewidth=0.09 * points)


def _is_way_back(schedule: Schedule, action: Action) -> bool:
    """Whether the action is of a rank's second stage in the same flow."""
    return schedule.stages > schedule.ranks and action.stage >= schedule.ranks


def _finish(axes: Axes, timeline: Timeline, figure: Figure) -> None:
    """Title, axes and legend."""
    schedule = timeline.schedule
    axes.set_xlim(0, timeline.makespan or 1.0)
    axes.set_ylim(schedule.ranks - 0.5, -0.5)
    axes.set_yticks(range(schedule.ranks), [f"rank {r}" for r in range(schedule.ranks)])
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=INK)
    axes.tick_params(axis="x", length=3, labelsize=8, color=QUIET, labelcolor=QUIET)
    for spine in axes.spines.values():
        spine.set_visible(False)
    inch = 1 / (ROW_INCHES * schedule.ranks)
    axes.text(
        0, 1 + 0.12 * inch, _title(timeline), transform=axes.transAxes, fontsize=11, color=INK
    )
    axes.text(
        1,
        -0.32 * inch,
        _note(schedule),
        transform=axes.transAxes,
        fontsize=8.5,
        color=QUIET,
        ha="right",
        va="top",
    )
    kinds = {cell.action.kind for cell in _cells(timeline)}
    handles = [
        Patch(facecolor=colour, edgecolor=EDGE, linewidth=0.5, label=f"{kind}  {NAMES[kind]}")
        for kind, colour in COLOURS.items()
        if kind in kinds
    ]
    handles.append(Patch(facecolor=IDLE_FACE, edgecolor=IDLE_LINES, hatch="////", label="idle"))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.3 * inch),
        bbox_transform=axes.transAxes,
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.6,
    )


def _note(schedule: Schedule) -> str:
    """What the numbers are."""
    if schedule.flows > 1:
        first, last = schedule.micro_batches_per_flow, schedule.micro_batches - 1
        return f"numbers: micro-batches; {first}-{last} enter at rank {schedule.ranks - 1}"
    if schedule.stages > schedule.ranks:
        return "numbers: micro-batches, underlined on the way back"
    return "numbers: micro-batches"


def _title(timeline: Timeline) -> str:
    schedule = timeline.schedule
    return (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.micro_batches} micro-batches;  "
        f"makespan {timeline.makespan:.6g}, idle {timeline.idle_fraction:.1%}, "
        f"peak {max(timeline.peak_in_flight):g} activations"
    )
