"""When a rank has done all that adds to the gradients of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parallel.schedule.lower import Step
from parallel.schedule.table import actions


def completions(program: Sequence[Step]) -> Mapping[int, list[int]]:
    """By number of the item in one rank's program, from 1, the stages whose last weight gradient,
    in any flow, it computes."""
    last: dict[int, int] = {}
    for number, step in enumerate(program, start=1):
        for action in actions(step.item):
            if action.kind in ("B", "W"):
                last[action.stage] = number
    found: dict[int, list[int]] = {}
    for stage, number in last.items():
        found.setdefault(number, []).append(stage)
    return found
