"""What a benchmark has found: both sides of each case, and whether they computed the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from trainer.bench.spread import Spread
from trainer.bench.turns import Timed
from trainer.errors import RunError

Clock = Literal["wall", "cpu"]
"""Seconds that pass, or those that processors work."""


ROUNDING = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2}
"""How far apart rounding alone brings losses and gradients of the same weights, by their type."""


@dataclass(frozen=True)
class Memory:
    """Of one process, in MiB. before: resident when its first step starts: the programs, weights
    and whatever else there is by then. peak: the highest until its last step has ended."""

    before: float
    peak: float


@dataclass(frozen=True)
class Side:
    """wall, cpu: seconds of each step that counts, by the clock and of all processors. losses: of
    every step, warm-up included. memory: where it was measured."""

    name: str
    wall: Spread
    cpu: Spread
    losses: tuple[float, ...] = ()
    memory: Memory | None = None


@dataclass(frozen=True)
class Agreement:
    """How far the sides' results are apart, in `what`. difference: the largest, relative to the
    size of what is compared. allowed: what rounding may make of it."""

    what: str
    difference: float
    allowed: float


@dataclass(frozen=True)
class Case:
    """Two sides that did the same. tokens: of a step."""

    name: str
    tokens: int
    ours: Side
    theirs: Side
    agreements: tuple[Agreement, ...]

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.ours, self.theirs


@dataclass(frozen=True)
class Report:
    """All cases of one comparison. ratio: the figure of a case is the time, or the speed, of ours
    over that of theirs. notes: lines for whoever reads it."""

    against: str
    ratio: Literal["time", "speed"]
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()

    def ratio_of(self, case: Case, clock: Clock) -> Spread:
        """The figure of a case, by turns."""
        ours, theirs = (getattr(side, clock) for side in case.sides)
        return ours.over(theirs) if self.ratio == "time" else theirs.over(ours)


def side_of(
    name: str, runs: Sequence[Sequence[Timed]], warmup: int, memory: Memory | None = None
) -> Side:
    """A side from all steps of its runs, which start alike and whose steps gave their losses."""
    counted = [step for run in runs for step in run[warmup:]]
    return Side(
        name,
        Spread(tuple(step.wall for step in counted)),
        Spread(tuple(step.cpu for step in counted)),
        tuple(step.result for step in runs[0]),
        memory,
    )


def require_same(case: Case) -> Case:
    """The case. Raises RunError where its sides did not compute the same."""
    for agreement in case.agreements:
        if not agreement.difference <= agreement.allowed:  # not a number is none
            raise RunError(
                f"{case.name}: {case.ours.name} and {case.theirs.name} do not compute the same: "
                f"their {agreement.what} differ by {agreement.difference:.1e}, more than "
                f"{agreement.allowed:.0e}"
            )
    return case


def losses_agree(ours: Side, theirs: Side, allowed: float) -> Agreement:
    """Of the losses of all steps."""
    pairs = zip(ours.losses, theirs.losses, strict=True)
    return Agreement("losses", max(abs(a - b) / abs(b) for a, b in pairs), allowed)


def gradients_agree(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], allowed: float
) -> Agreement:
    """Of the gradients by name; of each the norm of the difference over its norm."""
    if ours.keys() != theirs.keys():
        raise RunError(f"only one side has gradients of {sorted(ours.keys() ^ theirs.keys())}")
    apart = [
        float((ours[name].double() - grad.double()).norm() / grad.double().norm())
        for name, grad in theirs.items()
    ]
    return Agreement("gradients", max(apart), allowed)
