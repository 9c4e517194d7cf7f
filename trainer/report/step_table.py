"""The table of steps on the console: what its columns are, and a row of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from trainer.report.metrics import Value
from trainer.report.numbers import clock, fixed

_ROWS_BETWEEN_HEADINGS = 20
Means = Mapping[str, Value]


@dataclass(frozen=True)
class _Column:
    heading: str
    width: int
    text: Callable[[Means], str]


@dataclass
class StepTable:
    """At most 80 wide up to a million steps and two MTP modules, whatever the values."""

    steps: int
    mtp_depth: int
    _printed: int = field(default=0, init=False)

    def legend(self) -> str:
        """What the columns are."""
        mtp = ", mtp: the same for tokens further ahead" if self.mtp_depth else ""
        return (
            f"columns: means since the row before. loss: nats per token{mtp}. norm: of the whole "
            "gradient, before clipping. lr: learning rate, the last one. load max: tokens of the "
            "busiest expert of any layer, over the layer's mean; 1 is even."
        )

    def rows(self, done: int, means: Means, left: float) -> Iterator[str]:
        """The row of a finished step, counted from 1; now and then the headings before it. left:
        seconds to the end."""
        step = max(len("step"), len(str(self.steps)))
        if self._printed % _ROWS_BETWEEN_HEADINGS == 0:
            headings = "".join(f"  {column.heading:>{column.width}}" for column in self._columns())
            yield f"{'step':>{step}}{headings}  {'left':>8}"
        self._printed += 1
        cells = "".join(f"  {column.text(means):>{column.width}}" for column in self._columns())
        yield f"{done:>{step}}{cells}  {clock(left):>8}"

    def status(self, means: Means, left: float) -> str:
        """What stands beside a progress bar."""
        return f"loss {_number('loss', 4, 6, means)}  {_rate(means)} tokens/s  {clock(left)} left"

    def _columns(self) -> Iterator[_Column]:
        yield _Column("loss", 6, partial(_number, "loss", 4, 6))
        for depth in range(1, self.mtp_depth + 1):
            heading = f"mtp {depth}" if self.mtp_depth > 1 else "mtp"
            yield _Column(heading, 6, partial(_number, f"mtp_{depth}_loss", 4, 6))
        yield _Column("norm", 7, partial(_number, "gradient_norm", 2, 7))
        yield _Column("lr", 7, lambda means: f"{means['learning_rate']:.1e}")
        yield _Column("load max", 8, lambda means: _number("load_max", 2, 7, means) + "x")
        yield _Column("tokens/s", 9, _rate)


def _number(name: str, digits: int, width: int, means: Means) -> str:
    return fixed(_float(means[name]), digits, width)


def _rate(means: Means) -> str:
    # Not a mean of rates: a short step would count as much as a long one.
    return fixed(_float(means["tokens"]) / _float(means["seconds"]), 0, 9, grouped=True)


def _float(value: Value) -> float:
    assert isinstance(value, float | int)
    return float(value)
