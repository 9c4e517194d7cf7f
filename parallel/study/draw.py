"""The picture of timelines, as SVG and PNG: ranks as rows, time to the right, memory below.

Colours fall in lightness from F over I and B to W, so they hold in greyscale and for the
colour-blind. An overlapped pair is one cell, the forward above the backward. Numbers are
micro-batches: those of DualPipe's flow 1 continue from flow 0's, those of a rank's further stages
in the same flow are underlined.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parallel.files.outputs import write_file
from parallel.schedule.table import Schedule
from parallel.study import draw_rows as rows
from parallel.study.timeline import Timeline
from parallel.study.trace import NAMES

INK, QUIET = "#2b2b2b", "#6a6a6a"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tandem",  # equal timelines give equal files
    "font.family": "DejaVu Sans",
    "hatch.linewidth": 0.6,
}
CELL_INCHES = 0.17
MIN_WIDTH_INCHES, MAX_WIDTH_INCHES = 9.5, 30.0
MAX_HEIGHT_INCHES = 40.0  # of all rows; with the width, a PNG of 32 million pixels
LABEL_INCHES = 0.12  # least distance between the labels of two ranks
DOTS_PER_INCH = 160
LEFT_INCHES, RIGHT_INCHES, BOTTOM_INCHES = 0.7, 0.5, 0.6
TITLE_INCHES, BETWEEN_INCHES, AFTER_INCHES = 0.3, 0.12, 0.3


def save(
    timeline: Timeline,
    *paths: Path | str,
    measured: Timeline | None = None,
    transfers: bool = False,
) -> None:
    """Draw `timeline`, and `measured` below it, into files, their format by suffix.

    Equal timelines give equal bytes. At most 30 by 40 inches of rows, whatever their number: cells
    get narrower, rows lower, and items too small for a number or a label have none.
    Raises WriteError where a file cannot be written.
    """
    timelines = {"": timeline}
    if measured:
        timelines = {"simulated ": timeline, "measured ": measured}
    with mpl.rc_context(STYLE):
        figure = draw(timelines, transfers)
        for path in map(Path, paths):
            kind = path.suffix.removeprefix(".")
            picture = BytesIO()
            figure.savefig(
                picture, format=kind, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.12,
                metadata={"Date": None} if kind == "svg" else {"Software": None},
            )  # fmt: skip
            write_file(path, picture.getvalue())


def draw(timelines: Mapping[str, Timeline], transfers: bool = False) -> Figure:
    """The picture of timelines, one above the other on one scale, each with its title."""
    makespan = max(timeline.makespan for timeline in timelines.values()) or 1.0
    highest = max(max(timeline.peak_memory) for timeline in timelines.values())
    width = max(map(_width, timelines.values()))
    look = rows.WITH_TRANSFERS if transfers else rows.PLAIN
    ranks = sum(timeline.schedule.ranks for timeline in timelines.values())
    look = look.lower(
        min(1.0, MAX_HEIGHT_INCHES / (ranks * (look.row_inches + look.memory_inches)))
    )
    height = BOTTOM_INCHES + sum(_height(timeline, look) for timeline in timelines.values())
    figure = Figure(figsize=(LEFT_INCHES + width + RIGHT_INCHES, height))
    FigureCanvasAgg(figure)
    top = height
    for what, timeline in timelines.items():
        top -= TITLE_INCHES
        _text(figure, LEFT_INCHES, top + 0.1, what + _title(timeline), fontsize=11, color=INK)

        ranks = timeline.schedule.ranks
        top -= ranks * look.row_inches
        axes = _axes(figure, top, width, ranks * look.row_inches, ranks, makespan)
        rows.draw_rows(axes, timeline, look)
        rows.draw_numbers(axes, timeline, look, width / makespan)
        if transfers:
            rows.draw_transfers(axes, timeline, look)
        axes.tick_params(axis="x", length=0, labelbottom=False)

        top -= ranks * look.memory_inches + BETWEEN_INCHES
        axes = _axes(figure, top, width, ranks * look.memory_inches, ranks, makespan)
        rows.draw_memory(axes, timeline, highest)
        peaks = list(enumerate(timeline.peak_memory))
        for rank, peak in peaks[:: _labelled(look.memory_inches)]:
            bottom = rank + rows.MEMORY_HEIGHT / 2
            axes.text(timeline.makespan, bottom, f"  {peak:.4g}", fontsize=7.5, color=INK)
        top -= AFTER_INCHES
    _legend(figure, timelines, transfers)
    _text(
        figure, LEFT_INCHES + width, BOTTOM_INCHES - 0.38, _note(timeline),
        fontsize=8.5, color=QUIET, ha="right", va="top",
    )  # fmt: skip
    return figure


def _height(timeline: Timeline, look: rows.Look) -> float:
    rank = look.row_inches + look.memory_inches
    return TITLE_INCHES + BETWEEN_INCHES + AFTER_INCHES + rank * timeline.schedule.ranks


def _width(timeline: Timeline) -> float:
    """Wide enough for a number in the narrowest cell, within reason."""
    widths = (cell.width for cell in rows.cells(timeline))
    narrowest = min((width for width in widths if width > 0), default=1.0)
    return min(MAX_WIDTH_INCHES, max(MIN_WIDTH_INCHES, CELL_INCHES * timeline.makespan / narrowest))


def _axes(
    figure: Figure, bottom: float, width: float, height: float, ranks: int, makespan: float
) -> Axes:
    """Axes at a place in inches, with a row per rank."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((LEFT_INCHES / across, bottom / up, width / across, height / up))
    axes.set_xlim(0, makespan)
    axes.set_ylim(ranks - 0.5, -0.5)
    labelled = range(0, ranks, _labelled(height / ranks))
    axes.set_yticks(labelled, [f"rank {rank}" for rank in labelled])
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=INK)
    axes.tick_params(axis="x", length=3, labelsize=8, color=QUIET, labelcolor=QUIET)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _labelled(row_inches: float) -> int:
    """The interval, in rows, at which labels have room."""
    return ceil(LABEL_INCHES / row_inches)


def _text(figure: Figure, right: float, up: float, text: str, **style: Any) -> None:
    """Text at a place in inches."""
    across, height = figure.get_size_inches()
    figure.text(right / across, up / height, text, parse_math=False, **style)


def _legend(figure: Figure, timelines: Mapping[str, Timeline], transfers: bool) -> None:
    kinds = {cell.action.kind for timeline in timelines.values() for cell in rows.cells(timeline)}
    handles: list[Artist] = [
        Patch(facecolor=colour, edgecolor=rows.EDGE, linewidth=0.5, label=f"{kind}  {NAMES[kind]}")
        for kind, colour in rows.COLOURS.items()
        if kind in kinds
    ]
    if any(timeline.optimizer for timeline in timelines.values()):
        handles.append(Patch(**rows.OPTIMIZER, label="optimizer"))
    handles.append(Patch(**rows.IDLE, label="idle"))
    handles.append(Patch(**rows.MEMORY, label="activations held, and their peak"))
    if transfers:
        handles += [
            Line2D([], [], color=colour, linestyle=dashes, linewidth=1.0, label=kind)
            for kind, (colour, dashes) in rows.TRANSFERS.items()
        ]
    across, up = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(LEFT_INCHES / across, (BOTTOM_INCHES - 0.1) / up),
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.6,
    )


def _note(timeline: Timeline) -> str:
    """What the numbers are."""
    schedule = timeline.schedule
    words = ["numbers: micro-batches"]
    if schedule.flows > 1:
        first, last = schedule.micro_batches_per_flow, schedule.micro_batches - 1
        words.append(f"{first}-{last} enter at rank {schedule.placement[1, 0]}")
    most = max(rows.chunk_numbers(schedule).values())
    if _is_v(schedule):
        words.append("underlined on the way back")
    elif most == 1:
        words.append("underlined in the rank's second, deeper stage")
    elif most > 1:
        words.append("a line for each earlier stage of the rank")
    return "; ".join(words)


def _is_v(schedule: Schedule) -> bool:
    """Whether the stages go down the ranks and come back up."""
    holders = [schedule.placement.get((0, stage)) for stage in range(schedule.stages)]
    return len(holders) == 2 * schedule.ranks and holders == holders[::-1]


def _title(timeline: Timeline) -> str:
    schedule = timeline.schedule
    return (
        f"{schedule.name}: {schedule.ranks} ranks, {schedule.micro_batches} micro-batches;  "
        f"makespan {timeline.makespan:.6g}, idle {timeline.idle_fraction:.1%}, "
        f"peak {max(timeline.peak_in_flight):g} activations"
    )
