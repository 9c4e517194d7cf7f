"""The generators: the published orders, completeness, memory, refused numbers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.schedule.check import check
from parallel.schedule.generators import forward_only, generate
from parallel.schedule.table import Item, Overlap, Schedule, ScheduleError, actions
from parallel.study.simulate import CostModel, simulate
from tests.schedule_strategies import QUICK, followable, schedules

HERE = Path(__file__).parent
PEAK = {
    "gpipe": lambda ranks, micro_batches: micro_batches,
    "1f1b": lambda ranks, micro_batches: min(ranks, micro_batches),
    "interleaved": lambda ranks, micro_batches: min((3 * ranks - 1) / 2, micro_batches),
    "zb-h1": lambda ranks, micro_batches: min(ranks, micro_batches),
    "zb-h2": lambda ranks, micro_batches: min(2 * ranks - 1, micro_batches),
    "zbv": lambda ranks, micro_batches: min(ranks, micro_batches),
    "dualpipe": lambda ranks, micro_batches: min(ranks + 1, micro_batches),
    "dualpipev": lambda ranks, micro_batches: min(ranks + 0.5, micro_batches),
}


def recorded(name: str) -> list[tuple[str, int, int, dict[str, list]]]:
    orders = json.loads((HERE / "recorded_orders" / f"{name}.json").read_text())["orders"]
    return [
        (name, int(ranks[2:]), int(chunks[6:]), programs)
        for size, programs in orders.items()
        for ranks, chunks in [size.split("_")]
    ]


def as_recorded(schedule: Schedule, rank: int) -> list[list]:
    """A program in the words of the recorded orders, which count a rank's two modules."""
    module = {place: number for number, place in enumerate(schedule.stages_of(rank))}

    def row(item: Item) -> list:
        places = [(module[a.flow, a.stage], a.micro_batch) for a in actions(item)]
        kind = "FB" if isinstance(item, Overlap) else {"I": "BI"}.get(item.kind, item.kind)
        return [kind, *(number for place in places for number in place)]

    return [row(item) for item in schedule.programs[rank]]


@pytest.mark.parametrize(
    ("name", "ranks", "micro_batches", "programs"),
    recorded("dualpipe") + recorded("dualpipev"),
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_order_equals_the_published_code(
    name: str, ranks: int, micro_batches: int, programs: dict[str, list]
) -> None:
    schedule = generate(name, ranks, micro_batches)
    assert {f"rank{r}": as_recorded(schedule, r) for r in range(ranks)} == programs


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 2), (2, 5), (3, 4), (5, 17), (8, 16)])
def test_the_first_half_of_dualpipe_is_dualpipev(ranks: int, micro_batches: int) -> None:
    double = generate("dualpipe", 2 * ranks, 2 * micro_batches)
    folded = generate("dualpipev", ranks, micro_batches)
    for rank in range(ranks):
        assert as_recorded(double, rank) == as_recorded(folded, rank)


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
def test_dualpipe_with_few_micro_batches(name: str) -> None:
    """Fewer than published: pairs from half of them on, and sooner than 1F1B."""
    costs = CostModel(pair_factor=0.85)
    gains = []
    for micro_batches in range(2, 17, 2):
        schedule = generate(name, 8, micro_batches)
        step = simulate(schedule, costs).makespan
        gains.append(simulate(generate("1f1b", 8, micro_batches), costs).makespan - step)
        paired = any(isinstance(item, Overlap) for _, _, item in schedule.items())
        assert paired == (micro_batches > 8)
    assert min(gains) >= 4


def test_placements_count_stages_by_depth() -> None:
    double, folded = generate("dualpipe", 4, 8), generate("dualpipev", 4, 8)
    for rank in range(4):
        assert double.stages_of(rank) == [(0, rank), (1, 3 - rank)]
        assert folded.stages_of(rank) == [(0, rank), (0, 7 - rank)]


@QUICK
@given(schedules())
def test_every_schedule_is_complete_ordered_and_within_its_memory(schedule: Schedule) -> None:
    counts = Counter(a for _, _, item in schedule.items() for a in actions(item))
    assert set(counts.values()) == {1}
    for (flow, stage), rank in schedule.placement.items():
        for m in range(schedule.micro_batches_per_flow):
            kinds = [
                a.kind
                for item in schedule.programs[rank]
                for a in actions(item)
                if (a.flow, a.stage, a.micro_batch) == (flow, stage, m)
            ]
            assert kinds in (["F", "B"], ["F", "I", "W"])
    assert followable(schedule)
    report = check(schedule)
    bound = PEAK[schedule.name](schedule.ranks, schedule.micro_batches)
    assert max(report.peak_in_flight) == bound


@QUICK
@given(schedules(), st.integers(1, 9))
def test_forward_only_fits_every_placement(schedule: Schedule, micro_batches: int) -> None:
    table = forward_only(schedule.placement, micro_batches)
    report = check(table)
    forwards = {a for _, _, item in table.items() for a in actions(item)}
    assert len(forwards) == schedule.stages * micro_batches
    assert {(a.kind, a.flow) for a in forwards} == {("F", 0)}
    assert max(report.peak_in_flight) == schedule.stage_share
    # Fill, the busiest rank without a pause, drain.
    stages, a_rank = schedule.stages, schedule.stages // schedule.ranks
    group = schedule.ranks if schedule.name == "interleaved" else 1
    groups, place = divmod(micro_batches - 1, group)
    time = (stages + place + groups * group * a_rank) * schedule.stage_share
    assert simulate(table, CostModel()).makespan == pytest.approx(time)


@pytest.mark.parametrize(
    ("name", "ranks", "micro_batches", "needs"),
    [
        ("dualpipe", 3, 8, "ranks to be even, got 3"),
        ("dualpipe", 4, 9, "micro-batches to be even, got 9"),
        ("dualpipev", 0, 4, "ranks >= 1, got 0"),
        ("interleaved", 4, 6, "a multiple of ranks = 4, got 6: set micro-batches"),
        ("zb-h1", 0, 4, "ranks >= 1, got 0"),
        ("zb-h2", 2, 0, "micro-batches >= 1, got 0"),
        ("zbv", 2, 0, "micro-batches >= 1, got 0"),
        ("1f1b", 2, 0, "micro-batches >= 1, got 0"),
        ("gpipe", 0, 1, "ranks >= 1, got 0"),
        ("two-pipes", 2, 4, "schedule: no schedule is called 'two-pipes'"),
    ],
)
def test_refused_numbers(name: str, ranks: int, micro_batches: int, needs: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        generate(name, ranks, micro_batches)
    assert needs in str(refused.value)
    assert "\n" not in str(refused.value)
