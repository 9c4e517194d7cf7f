"""Events as marks on the curves of a picture, each kind with a shape of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.report.events import EventKind, name_of
from trainer.report.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 500  # marks of one kind: of more, only some are drawn
_EDGE = {"markeredgecolor": "black", "markeredgewidth": 0.6}
# Kinds that lie on the curve, in the colour of the run.
_ON_THE_CURVE: dict[EventKind, dict[str, Any]] = {
    "restart": {"marker": "^", "markersize": 8, **_EDGE},
    "rollback": {"marker": "<", "markersize": 8, **_EDGE},
    "skipped": {"marker": "X", "markersize": 7, **_EDGE},
    "spike": {"marker": "*", "markersize": 11, **_EDGE},
    "copies_differ": {"marker": "D", "markersize": 6, **_EDGE},
}
# Kinds that stand on the axis of steps, since there are many of them.
_ON_THE_AXIS: dict[EventKind, dict[str, Any]] = {
    "checkpoint": {"marker": "|", "markersize": 9, "markeredgewidth": 1.2},
    "checkpoint_failed": {"marker": "x", "markersize": 7, "markeredgewidth": 1.8},
}


def draw_marks(axes: Axes, run: RunLog, key: str, colour: str, checkpoints: bool) -> None:
    """Mark a run's events on its curve of `key`, and its checkpoints below, if wanted."""
    series = run.series.get(key)
    if series is None or not (finite := np.isfinite(series.values)).any():
        return
    for kind, style in _ON_THE_CURVE.items():
        steps = _steps(run, kind)
        heights = np.interp(steps, series.steps[finite], series.values[finite])
        axes.plot(steps, heights, linestyle="none", color=colour, zorder=4, **style)
    for kind, style in _ON_THE_AXIS.items() if checkpoints else ():
        steps = _steps(run, kind)
        axes.plot(
            steps, np.full(len(steps), 0.012), linestyle="none", color=colour, zorder=4,
            transform=axes.get_xaxis_transform(), **style,
        )  # fmt: skip


def draw_legend(axes: Axes, runs: Sequence[RunLog]) -> None:
    """Say what each kind of mark is that there is."""
    from matplotlib.lines import Line2D

    there = {event.kind for run in runs for event in run.events}
    handles = [
        Line2D([], [], linestyle="none", color="grey", label=name_of(kind), **style)
        for kind, style in (_ON_THE_CURVE | _ON_THE_AXIS).items()
        if kind in there
    ]
    if handles:
        first = axes.get_legend()
        axes.legend(
            handles=handles, loc="upper center", fontsize=9, frameon=False,
            ncols=1 + len(handles) // 4,
        )  # fmt: skip
        if first is not None:  # a second legend takes the place of the first
            axes.add_artist(first)


def _steps(run: RunLog, kind: EventKind) -> list[int]:
    """Where events of a kind happened, steps counted from 1; at most so many."""
    steps = [event.step + 1 for event in run.events if event.kind == kind]
    return steps[:: 1 + len(steps) // _MOST]
