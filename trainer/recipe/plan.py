"""The steps of a run from its start to its end, by stretches of one batch size.

A run of millions of steps has a few dozen stretches: what its schedules say about any step follows
from these, without going through the steps one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from trainer.errors import ConfigError
from trainer.recipe.phases import Phase, Span
from trainer.recipe.progress import Point, Progress

KEY = "recipe.batch"
MOST_SIZES = 64


@dataclass(frozen=True)
class Level:
    """A batch size, in sequences, up to a point; None: to the end of the run."""

    sequences: int
    until: Point | None


@dataclass(frozen=True)
class Stretch:
    """Steps with the same batch size. start: before the first of them."""

    start: Progress
    steps: int
    sequences: int


@dataclass(frozen=True)
class Plan:
    """length: of the run, which ends with the first step that reaches it. levels: what the batch
    size of a step follows from. end: after the last step."""

    length: Point
    sequence_length: int
    levels: tuple[Level, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    end: Progress = field(default_factory=Progress)

    def before_step(self, step: int) -> Progress:
        """The progress of the run before a step, counted from 0; at most its end."""
        starts = [stretch.start.step for stretch in self.stretches]
        stretch = self.stretches[bisect_right(starts, step) - 1]
        steps = min(step - stretch.start.step, stretch.steps)
        return stretch.start.after_steps(steps, stretch.sequences, self.sequence_length)

    def first_step_at(self, point: Point) -> int:
        """The first step that starts at or after a point; that after the last, if none does."""
        for stretch in self.stretches:
            steps = _steps_until(point, stretch.start, stretch.sequences, self.sequence_length)
            if steps < stretch.steps:
                return stretch.start.step + steps
        return self.end.step

    def place(self, key: str, phase: Phase, earlier: Point | None) -> Span:
        """The place of a phase of `key`; earlier: the end of the one before, if there is one.

        Raises ConfigError for a phase that ends before it starts.
        """
        end, start, never = phase.until or self.length, 0, False
        if earlier is not None and earlier.unit == end.unit:
            start = earlier.count
        elif earlier is not None:  # where that is, in the other unit
            progress = self.before_step(self.first_step_at(earlier))
            start, never = progress.count(end.unit), self.length.reached(progress)
        if phase.until is not None and start >= end.count and not never:
            raise ConfigError(
                f"{key}: '{phase.text}' ends at {end.count:,} {end.unit}, but the phase before it "
                f"ends at {start:,}: give it a later end, or leave it out"
            )
        return Span(phase, start, end)


def make_plan(phases: Sequence[Phase], length: Point, sequence_length: int) -> Plan:
    """The plan of a run with these phases of its batch size.

    Raises ConfigError for a ramp that has no whole number of sizes, or too many.
    """
    plan = Plan(length, sequence_length)
    earlier: Point | None = None
    for phase in phases:
        for level in _levels(plan.place(KEY, phase, earlier)):
            plan = _extended(plan, level)
        earlier = phase.until
    sizes = len(batch_sizes(plan))
    if sizes > MOST_SIZES:
        raise ConfigError(
            f"{KEY} has {sizes} different sizes, each of which needs a schedule table of "
            f"its own: at most {MOST_SIZES} are possible, so raise the number after `by`"
        )
    return plan


def batch_sizes(plan: Plan) -> list[int]:
    """The different batch sizes of a run, in the order in which they come."""
    return list(dict.fromkeys(stretch.sequences for stretch in plan.stretches))


def _levels(span: Span) -> Iterator[Level]:
    """A ramp as sizes: at any point the last one that a straight line has reached."""
    phase = span.phase
    if phase.shape == "constant":
        yield Level(int(phase.last), phase.until)
        return
    first, last, by = int(phase.first), int(phase.last), phase.by
    if by < 1 or first == last or (last - first) % by:
        raise ConfigError(
            f"{KEY}: '{phase.text}' does not lead from {first} to {last} in whole steps: "
            f"set the number after `by` to a divisor of {abs(last - first)}"
        )
    count = abs(last - first) // by
    if count > MOST_SIZES:
        raise ConfigError(
            f"{KEY}: '{phase.text}' has {count} sizes, each of which needs a schedule table "
            f"of its own: at most {MOST_SIZES} are possible, so raise the number after `by`"
        )
    room, step = span.end.count - span.start, by if last > first else -by
    for n in range(count):
        end = span.start - (-room * (n + 1) // count)  # rounded up
        yield Level(first + n * step, replace(span.end, count=end))


def _extended(plan: Plan, level: Level) -> Plan:
    """With the steps of one more level, none after the end of the run."""
    steps = _steps_until(plan.length, plan.end, level.sequences, plan.sequence_length)
    if level.until is not None:
        to_end = _steps_until(level.until, plan.end, level.sequences, plan.sequence_length)
        steps = min(steps, to_end)
    stretches = plan.stretches
    if steps > 0:
        stretches += (Stretch(plan.end, steps, level.sequences),)
    end = plan.end.after_steps(steps, level.sequences, plan.sequence_length)
    return replace(plan, levels=(*plan.levels, level), stretches=stretches, end=end)


def _steps_until(point: Point, start: Progress, sequences: int, sequence_length: int) -> int:
    """Steps of so many sequences, from `start` on, until a point is reached."""
    size = 1 if point.unit == "steps" else sequences * sequence_length
    return max(0, -(-(point.count - start.count(point.unit)) // size))
