"""Which schedules a truth test can run: all that support its sizes and costs, or those named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parallel.pipeline.truth.results import IN_TORCH, TruthTest
from parallel.schedule.table import ScheduleError
from parallel.study.simulate import simulate

MOST_RANKS = 128  # each is a process on this machine
MOST_SECONDS = 300.0  # of one step, half of what a rank waits for another


def chosen(test: TruthTest) -> TruthTest:
    """`test`, after checking that all its schedules can be run.

    Raises ScheduleError, a SettingError where the numbers are at fault, for one that cannot.
    """
    for name in dict.fromkeys((*test.names, *test.with_torch)):
        seconds = simulate(test.schedule(name), test.costs).makespan
        if seconds > MOST_SECONDS:
            raise ScheduleError(
                f"a step of {name} would take {seconds:.6g} s; at most {MOST_SECONDS:g} s are "
                "allowed: take lower costs or fewer micro-batches"
            )
    return test


def chosen_of_all(
    test: TruthTest, names: Sequence[str]
) -> tuple[TruthTest, dict[str, ScheduleError]]:
    """`test` with those of `names` that can be run, and why each of the others cannot.

    Raises the error of the first if there is none.
    """
    left_out: dict[str, ScheduleError] = {}
    for name in names:
        try:
            chosen(replace(test, names=(name,), with_torch=()))
        except ScheduleError as error:
            left_out[name] = error
    able = tuple(name for name in names if name not in left_out)
    if not able:
        raise next(iter(left_out.values()))
    with_torch = tuple(name for name in test.with_torch if name in able)
    return replace(test, names=able, with_torch=with_torch), left_out


def in_torch(names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that torch has too; all that torch has if there are no names."""
    return tuple(name for name in names or IN_TORCH if name in IN_TORCH)
