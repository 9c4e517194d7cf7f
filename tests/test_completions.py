"""Gradients that are complete are summed while others are still to come."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

from parallel.pipeline.completions import completions
from parallel.ranks.groups import GroupSpec, open_groups
from parallel.ranks.process import Process
from parallel.reduce.gradients import make_gradients
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.lower import lower
from parallel.schedule.table import Overlap
from tests.distributed import run_world


@pytest.mark.parametrize("schedule", GENERATORS)
def test_a_stage_is_complete_with_its_last_weight_gradient(schedule: str) -> None:
    table = generate(schedule, 4, 8)
    for rank, program in enumerate(lower(table).programs):
        found = completions(program)
        items = [step.item for step in program]
        stages = {stage for _, stage in table.stages_of(rank)}
        assert sorted(stage for done in found.values() for stage in done) == sorted(stages)
        for number, done in found.items():
            for stage in done:
                assert stage in _adds_to(items[number - 1])
                assert not any(stage in _adds_to(item) for item in items[number:])


def _adds_to(item: Any) -> set[int]:
    """The stages whose gradients an item adds to."""
    actions = [item.forward, item.backward] if isinstance(item, Overlap) else [item]
    return {action.stage for action in actions if action.kind in ("B", "W")}


def _sums(process: Process) -> dict[str, float]:
    """Two ranks hold stages 0 and 1 and complete them in opposite orders; what each has after the
    deeper stage is complete, and in the end."""
    stages = {"a": 0, "b": 1}
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in stages}
    copies_of = dict.fromkeys(parameters, (0, 1))
    both = GroupSpec((0, 1), "gradients", "all-reduce")
    opened = open_groups([both], process.rank, timedelta(seconds=30), torch.device("cpu"))
    gradients = make_gradients(
        parameters, copies_of, {(0, 1): opened[both]}, process.rank,
        stages_of=lambda name: frozenset({stages[name]}), held=(0, 1),
    )  # fmt: skip
    found = {}
    for step in range(2):
        gradients.zero()
        parameters["b"].grad += 1
        for stage in (1, 0) if process.rank == 0 else (0, 1):
            if stage == 0:
                parameters["a"].grad += 1 + step  # after b is complete, on rank 0
            gradients.completed(stage)
        gradients.reduce()
        found |= {f"{name} {step}": float(p.grad) for name, p in parameters.items()}
    return found


def test_ranks_that_complete_stages_in_different_orders_sum_them_in_one() -> None:
    expected = {"a 0": 2.0, "b 0": 2.0, "a 1": 4.0, "b 1": 2.0}
    assert run_world(2, _sums, timeout=60) == [expected, expected]


def test_what_is_not_complete_is_not_started() -> None:
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in ("a", "b")}
    started: list[str] = []
    gradients = make_gradients(
        parameters, dict.fromkeys(parameters, (0,)), {}, 0,
        stages_of=lambda name: frozenset({"ab".index(name)}), held=(0, 1),
    )  # fmt: skip

    class Noted:
        def __init__(self, share: Any) -> None:
            self.bucket = share.bucket

        def reduce(self) -> Any:
            started.append(self.bucket.names[0])
            return lambda: None

    gradients.shares = [Noted(share) for share in gradients.shares]  # type: ignore[misc]
    gradients.completed(0)
    assert started == []  # the deeper stage comes first, on every rank
    gradients.completed(1)
    assert started == ["b", "a"]
    gradients.reduce()
    gradients.reduce()  # of the next step
    assert started == ["b", "a"] * 2
