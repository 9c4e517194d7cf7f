"""How far the losses of some runs are from those of others that differ in one thing, pair by pair.

The loss of a step is noise and trend; two runs see the same text, so that their difference is
mostly what differs between them, and what grows from that. Means over windows tell more than steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parallel.files.shown import printable
from trainer.errors import RunError
from trainer.report.run_log import RunLog, short_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS = 20


@dataclass(frozen=True)
class Difference:
    """Of P pairs over W windows. steps [W]: the last of each window. theirs, ours [P, W]: mean
    loss."""

    names: tuple[tuple[str, str], ...]
    steps: NDArray[np.int64]
    ours: NDArray[np.float64]
    theirs: NDArray[np.float64]

    @property
    def relative_PW(self) -> NDArray[np.float64]:
        """Of ours to theirs: 0.01 is 1 % more."""
        return self.ours / self.theirs - 1

    @property
    def relative_W(self) -> NDArray[np.float64]:
        """Of the mean over pairs."""
        relative: NDArray[np.float64] = self.ours.mean(0) / self.theirs.mean(0) - 1
        return relative

    def as_json(self) -> dict[str, Any]:
        """pairs: relative differences over all steps, and over the second half of them."""
        half = len(self.steps) // 2

        def both(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> dict[str, float]:
            return {
                "all_steps": float(ours.mean() / theirs.mean() - 1),
                "second_half": float(ours[..., half:].mean() / theirs[..., half:].mean() - 1),
            }

        return {
            "pairs": [
                {"run": run, "against": other, **both(ours, theirs)}
                for (run, other), ours, theirs in zip(self.names, self.ours, self.theirs)
            ],
            "together": both(self.ours, self.theirs),
            "windows": [
                {"to_step": int(step), "relative": float(value)}
                for step, value in zip(self.steps, self.relative_W)
            ],
        }


def difference(runs: Sequence[RunLog], others: Sequence[RunLog]) -> Difference:
    """Of runs and others in the order given, over the steps that all have.

    Raises RunError where they do not pair, or have no losses in common.
    """
    if len(runs) != len(others):
        raise RunError(
            f"--against has {len(others)} runs for {len(runs)}: give one for each, in their order"
        )
    losses = [run.series.get("loss") for run in (*runs, *others)]
    if any(series is None for series in losses):
        raise RunError("--against: a run has no loss to compare")
    steps = sorted(set.intersection(*(set(s.steps[np.isfinite(s.values)]) for s in losses if s)))
    if len(steps) < WINDOWS:
        raise RunError(f"--against: runs have {len(steps)} steps in common, fewer than {WINDOWS}")
    values = [s.values[np.isin(s.steps, steps)] for s in losses if s]
    windows = np.array_split(np.arange(len(steps)), WINDOWS)
    means = np.array([[run[window].mean() for window in windows] for run in values])
    names = list(map(printable, short_names((*runs, *others))))
    return Difference(
        names=tuple(zip(names[: len(runs)], names[len(runs) :])),
        steps=np.array([steps[window[-1]] for window in windows]),
        ours=means[: len(runs)],
        theirs=means[len(runs) :],
    )


def lines(found: Difference) -> Iterator[str]:
    """For a person."""
    said = found.as_json()
    width = max(len(pair["run"]) + len(pair["against"]) for pair in said["pairs"]) + 9
    yield f"{'loss of':{width}}  all steps  second half"
    for pair in said["pairs"]:
        name = f"{pair['run']} against {pair['against']}"
        yield f"{name:{width}}  {pair['all_steps']:+9.2%}  {pair['second_half']:+11.2%}"
    if len(said["pairs"]) > 1:
        both = said["together"]
        yield f"{'together':{width}}  {both['all_steps']:+9.2%}  {both['second_half']:+11.2%}"


def draw_difference(found: Difference) -> Figure:
    """The mean curves, and below them the difference of each pair and of the means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for values, label in ((found.ours, found.names[0][0]), (found.theirs, found.names[0][1])):
        more = f" and {len(values) - 1} more" if len(values) > 1 else ""
        above.plot(found.steps, values.mean(0), label=f"{label}{more}")
    above.set_title("loss, nats per token, mean of windows and runs", fontsize=10, loc="left")
    for text in above.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    below.plot(found.steps, 100 * found.relative_PW.T, color="grey", linewidth=0.8)
    below.plot(found.steps, 100 * found.relative_W, color="C3")
    below.axhline(0, color="black", linewidth=0.6)
    below.set_title("difference, %: pairs (grey) and means", fontsize=10, loc="left")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xlabel("step")
    return figure
