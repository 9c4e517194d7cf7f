"""When a rank has done all that adds to the gradients of a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from parallel.schedule.lower import Step
from parallel.schedule.table import Action, Item, Overlap


def completions(program: Sequence[Step]) -> Mapping[int, list[int]]:
    """By number of the item in one rank's program, from 1, the stages whose last weight gradient,
    in any flow, it computes."""
    last: dict[int, int] = {}
    for number, step in enumerate(program, start=1):
        for action in _actions(step.item):
            if action.kind in ("B", "W"):
                last[action.stage] = number
    found: dict[int, list[int]] = {}
    for stage, number in last.items():
        found.setdefault(number, []).append(stage)
    return found


def _actions(item: Item) -> Iterator[Action]:
    if isinstance(item, Overlap):
        yield from (item.forward, item.backward)
    else:
        yield item
