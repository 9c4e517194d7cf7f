"""The split of layers over stages: what a heavy stage gives away, judged by the simulated step."""

from __future__ import annotations

from itertools import product

import pytest

from parallel.schedule.generators import generate
from parallel.schedule.table import ScheduleError
from parallel.study.costs import CostModel
from parallel.study.simulate import simulate
from parallel.study.split import Counts, split_layers


def costs(counts: Counts) -> CostModel:
    """The last stage has two layers' work besides, the first one half a layer's."""
    work = [float(count) for count in counts]
    work[0], work[-1] = work[0] + 0.5, work[-1] + 2
    return CostModel(work, [1.2 * each for each in work], [0.8 * each for each in work], 0.8)


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev", "1f1b"])
def test_no_split_of_the_same_layers_is_quicker(name: str) -> None:
    table = generate(name, 2 if name == "dualpipev" else 4, 12)
    found = split_layers(table, 13, costs)
    assert sum(found.counts) == 13 and min(found.counts) >= 1
    assert found.makespan == simulate(table, costs(found.counts)).makespan
    every = [counts for counts in product(range(1, 8), repeat=4) if sum(counts) == 13]
    steps = [simulate(table, costs(counts)).makespan for counts in every]
    assert found.makespan <= 1.02 * min(steps)
    assert found.makespan < 0.9 * simulate(table, costs((4, 3, 3, 3))).makespan


def test_too_few_layers() -> None:
    with pytest.raises(ScheduleError, match="3 layers are too few for 4 stages of 1 or more"):
        split_layers(generate("1f1b", 4, 8), 3, costs)
