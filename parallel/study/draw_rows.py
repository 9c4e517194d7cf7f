"""What a picture of a timeline is made of: a row of cells and one of memory for each rank.

Everything is drawn in units of time to the right and of rows downwards. Cells of a
kind are one path, so that a picture of many cells is a small file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import copysign
from typing import Any, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from parallel.schedule.table import Action, Overlap, Schedule
from parallel.study.timeline import Timeline
from parallel.study.trace import journeys

COLOURS = {"F": "#fde3a7", "I": "#8cbfe6", "B": "#3d7fb8", "W": "#1d3557"}
INK_ON = {"F": "#2b2b2b", "I": "#14283c", "B": "#ffffff", "W": "#ffffff"}
TRANSFERS: dict[str, tuple[str, Any]] = {  # colour and dashes
    "activation": ("#b34700", "solid"),
    "gradient": ("#6b1f7a", (0, (2.2, 1.2))),
}
EDGE = "#5f5f5f"
# How a patch looks.
IDLE: dict[str, Any] = {
    "facecolor": "#ffffff", "edgecolor": "#cfcfcf", "hatch": "////", "linewidth": 0.6
}  # fmt: skip
OPTIMIZER: dict[str, Any] = {
    "facecolor": "#e4e4e4", "edgecolor": "#8a8a8a", "hatch": "xxxx", "linewidth": 0.4
}  # fmt: skip
MEMORY: dict[str, Any] = {"facecolor": "#d3d3d3", "edgecolor": EDGE, "linewidth": 0.5}
MEMORY_HEIGHT = 0.82  # of a row of memory
BEHIND_CELLS = 0.9  # patches, as cells are, have a zorder of 1
NUMBER_POINTS, SMALLEST_POINTS = 8.0, 3.2

Point: TypeAlias = tuple[float, float]


class Look(NamedTuple):
    """The distance of two rows, in inches, how much of it a cell takes, and that of two rows of
    memory, in inches."""

    row_inches: float
    cell_height: float

    memory_inches: float = 0.24

    def lower(self, factor: float) -> Look:
        """The same with rows that are `factor` as high."""
        return Look(self.row_inches * factor, self.cell_height, self.memory_inches * factor)


PLAIN, WITH_TRANSFERS = Look(0.36, 0.84), Look(0.48, 0.63)


class Cell(NamedTuple):
    """An action as a rectangle, in units of time and of rows."""

    action: Action
    left: float
    top: float
    width: float
    height: float


def cells(timeline: Timeline, look: Look = PLAIN) -> Iterator[Cell]:
    """Every action's rectangle; a pair has its forward above its backward."""
    for rank, item, start, end in timeline.spans:
        top = rank - look.cell_height / 2
        if isinstance(item, Overlap):
            half = look.cell_height / 2
            yield Cell(item.forward, start, top, end - start, half)
            yield Cell(item.backward, start, top + half, end - start, half)
        else:
            yield Cell(item, start, top, end - start, look.cell_height)


def draw_rows(axes: Axes, timeline: Timeline, look: Look) -> None:
    """Every rank's items, with their numbers, on idle time."""
    rows = [rank - look.cell_height / 2 for rank in range(timeline.schedule.ranks)]
    idle = [_box(0, top, timeline.makespan, look.cell_height) for top in rows]
    _add(axes, idle, **IDLE, zorder=BEHIND_CELLS - 0.1)
    optimizer = [
        _box(start, top, end - start, look.cell_height)
        for top, (start, end) in zip(rows, timeline.optimizer)
    ]
    _add(axes, optimizer, **OPTIMIZER)
    boxes = defaultdict(list)
    for cell in cells(timeline, look):
        boxes[cell.action.kind].append(_box(*cell[1:]))
    for kind, of_kind in boxes.items():
        _add(axes, of_kind, facecolor=COLOURS[kind], edgecolor=EDGE, linewidth=0.4)
    pairs = [
        _box(start, rows[rank], end - start, look.cell_height)
        for rank, item, start, end in timeline.spans
        if isinstance(item, Overlap)
    ]
    # One strong outline around each pair: it is one cell.
    _add(axes, pairs, facecolor="none", edgecolor="#1f1f1f", linewidth=0.9)


def _box(left: float, top: float, width: float, height: float) -> list[Point]:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _add(axes: Axes, outlines: Iterable[list[Point]], **style: Any) -> None:
    """Draw closed outlines of one style as one path."""
    points: list[Point] = []
    codes: list[Any] = []
    for outline in outlines:
        points += [*outline, outline[0]]
        codes += [Path.MOVETO, *[Path.LINETO] * (len(outline) - 1), Path.CLOSEPOLY]
    if points:
        # Not add_patch, which takes long to find how far this reaches; the limits are set.
        axes.add_artist(PathPatch(Path(points, codes), **style))


def draw_numbers(axes: Axes, timeline: Timeline, look: Look, inches_per_unit: float) -> None:
    """Each cell's micro-batch where it can be read, flow 1's continuing from flow 0's; a line below
    it for each stage of this flow that the rank holds before this one."""
    schedule = timeline.schedule
    chunks = chunk_numbers(schedule)
    digits = len(str(schedule.micro_batches - 1))
    lines: dict[str, list[list[Point]]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    for cell in cells(timeline, look):
        action = cell.action
        points = min(
            NUMBER_POINTS,
            0.86 * cell.width * inches_per_unit * 72 / (0.64 * digits),
            0.72 * cell.height * look.row_inches * 72,
        )
        if points < SMALLEST_POINTS:
            continue
        number = action.flow * schedule.micro_batches_per_flow + action.micro_batch
        x, y = cell.left + cell.width / 2, cell.top + cell.height / 2
        em_right, em_down = points / 72 / inches_per_unit, points / 72 / look.row_inches
        ink = INK_ON[action.kind]
        # Centred by hand on the height of a digit, so that all numbers stand on one line.
        baseline = y + 0.365 * em_down
        axes.text(x, baseline, str(number), color=ink, fontsize=points, ha="center", va="baseline")
        half = 0.34 * len(str(number)) * em_right
        for line in range(chunks[action.flow, action.stage]):
            below = baseline + (0.17 + 0.2 * line) * em_down
            lines[ink].append([(x - half, below), (x + half, below)])
            widths[ink].append(0.09 * points)
    for ink, segments in lines.items():
        collection = LineCollection(segments, colors=ink, linewidths=widths[ink])
        axes.add_collection(collection, autolim=False)


def chunk_numbers(schedule: Schedule) -> dict[Point, int]:
    """(flow, stage) -> how many earlier stages of this flow its rank holds."""
    held = [schedule.stages_of(rank) for rank in range(schedule.ranks)]
    return {
        (flow, stage): sum(other == flow and earlier < stage for other, earlier in places)
        for places in held
        for flow, stage in places
    }


def draw_transfers(axes: Axes, timeline: Timeline, look: Look) -> None:
    """A line for each message, behind the cells: from its sender, when its transfer starts (or,
    where this is not known, when it is sent), to its receiver, when it has arrived."""
    by_kind: dict[str, list[list[Point]]] = defaultdict(list)
    for journey in journeys(timeline):
        (message, start, end), maker, user = journey.transfer, journey.maker, journey.user
        # From the edge that faces the receiver to the one that faces the sender.
        edge = copysign(look.cell_height / 2, user.rank - maker.rank)
        by_kind[message.kind].append([(start, maker.rank + edge), (end, user.rank - edge)])
    for kind, lines in by_kind.items():
        colour, dashes = TRANSFERS[kind]
        collection = LineCollection(lines, colors=colour, linestyles=[dashes], linewidths=0.9)
        collection.set_zorder(BEHIND_CELLS)
        axes.add_collection(collection, autolim=False)
        arrivals = zip(*(end for _, end in lines))
        axes.plot(*arrivals, "o", color=colour, markersize=2.6, markeredgewidth=0)


def draw_memory(axes: Axes, timeline: Timeline, highest: float) -> None:
    """Every rank's activation memory over time, a full row being `highest`."""
    for rank, steps in enumerate(timeline.memory):
        bottom = rank + MEMORY_HEIGHT / 2
        scale = MEMORY_HEIGHT / (highest or 1.0)
        outline = [(0.0, bottom)]
        for (start, held), (end, _) in pairwise([*steps, (timeline.makespan, 0.0)]):
            outline += [(start, bottom - held * scale), (end, bottom - held * scale)]
        outline.append((timeline.makespan, bottom))
        _add(axes, [outline], **MEMORY)
