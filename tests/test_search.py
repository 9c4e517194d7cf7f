"""The searched schedule: never worse than its start, under the cap, and above its lower bound."""

from __future__ import annotations

import pytest

from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.generators.placements import v_placement
from parallel.schedule.table import Overlap, Schedule, ScheduleError, actions
from parallel.study.costs import CostModel
from parallel.study.search import Found, Progress, search
from parallel.study.search.bound import lower_bound
from parallel.study.search.orders import Orders
from parallel.study.search.starts import start_of
from parallel.study.simulate import simulate

PAIRED = CostModel(pair_factor=0.85)
# The last stage of 2 x 4 has the head and a prediction module, the first one the embedding.
HEAVY = CostModel(
    forward=(0.55, *[0.5] * 6, 0.9),
    input_grad=(0.5, *[0.55] * 6, 0.9),
    weight_grad=(0.5, *[0.45] * 6, 0.8),
    pair_factor=0.9,
    hop=0.02,
    optimizer=0.2,
)
COSTS = [
    CostModel(),
    PAIRED,
    HEAVY,
    CostModel(pair_factor=(0.8, 0.9, 1.0, 1.2), input_grad=1.3, hop=0.1, optimizer_waits=False),
    CostModel(forward=0.8, weight_grad=0.7, pair_factor=0.9, message_bytes=3, bandwidth=20),
]


def pairs(schedule: Schedule, rank: int) -> int:
    return sum(isinstance(item, Overlap) for item in schedule.programs[rank])


def test_search_improves_on_the_handcrafted() -> None:
    reports: list[Progress] = []
    found = search(PAIRED, 4, 8, moves=20_000, seed=1, progress=reports.append)
    assert (found.start, found.start_makespan) == ("dualpipev", pytest.approx(24.75))
    assert found.lower_bound == pytest.approx(23.7)
    assert found.lower_bound <= found.makespan <= 24.4
    assert simulate(found.schedule, PAIRED).makespan == found.makespan
    assert max(check(found.schedule).peak_in_flight) <= 4.5
    assert found.schedule.name == "searched"
    assert found.moves <= 20_000 + 64
    for report in reports:
        assert report.lower_bound <= report.best <= found.start_makespan


def test_search_reaches_its_bound() -> None:
    found = search(PAIRED, 4, 8, moves=150_000, seed=1)
    assert found.optimal and found.makespan == pytest.approx(23.7)
    assert [pairs(found.schedule, rank) for rank in (1, 2, 3)] == [4, 6, 8]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 3, 8, 16, 20])
def test_zbv_begins_with_pairs(ranks: int, micro_batches: int) -> None:
    """Where pairs pay, and it is under the cap of zbv, and sooner than without them."""
    table = generate("zbv", ranks, micro_batches)
    for cap in (2 * ranks, 2 * ranks + 1):
        paired = start_of(table, Orders(PAIRED, ranks, micro_batches, cap))
        assert max(check(paired.schedule()).peak_in_flight) <= cap / 2
        if micro_batches >= 2 * ranks:
            assert pairs(paired.schedule(), ranks - 1) > 0 or ranks == 1
            assert max(paired.finish()) < simulate(table, PAIRED).makespan
    alone = start_of(table, Orders(CostModel(), ranks, micro_batches, 2 * ranks))
    assert not any(pairs(alone.schedule(), rank) for rank in range(ranks))


def test_deterministic_by_seed() -> None:
    def run(seed: int) -> Found:
        return search(HEAVY, 4, 8, moves=4000, seed=seed)

    assert run(3).schedule == run(3).schedule
    assert run(3).schedule != run(4).schedule


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("memory_cap", [1.0, 2.5, 4.0, 4.5, 6.0])
def test_cap_start_and_bound(costs: CostModel, memory_cap: float) -> None:
    found = search(costs, 4, 9, memory_cap=memory_cap, moves=600, seed=0)
    timeline = simulate(found.schedule, costs)
    assert max(check(found.schedule).peak_in_flight) <= memory_cap
    assert timeline.makespan == found.makespan <= found.start_makespan
    assert found.lower_bound <= found.makespan + 1e-9
    expected = {4.0: "zbv", 4.5: "", 6.0: ""}.get(memory_cap, "one micro-batch at a time")
    assert found.start == expected or not expected


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("costs", [c for c in COSTS if not isinstance(c.pair_factor, tuple)])
def test_bound_is_below_every_table_on_a_v(ranks: int, costs: CostModel) -> None:
    if costs is HEAVY:
        costs = CostModel(
            forward=(*[0.5] * (2 * ranks - 1), 1.5), input_grad=1.2, pair_factor=0.9, hop=0.03
        )
    for micro_batches in (1, 2, 5, 2 * ranks, 2 * ranks + 3):
        for name in GENERATORS:
            try:
                schedule = generate(name, ranks, micro_batches)
            except ScheduleError:
                continue
            if dict(schedule.placement) != v_placement(ranks):
                continue
            for cap in (2 * ranks, 2 * ranks + 1, 2 * micro_batches):
                if max(check(schedule).peak_in_flight) <= cap / 2:
                    bound = lower_bound(costs, ranks, micro_batches, cap)
                    assert bound <= simulate(schedule, costs).makespan + 1e-9


def test_bound_by_hand() -> None:
    """ZBV without pairs is as soon as can be; with one rank there is nothing but work."""
    for ranks in (1, 2, 4, 8):
        micro_batches = 2 * ranks
        zbv = simulate(generate("zbv", ranks, micro_batches), CostModel()).makespan
        assert lower_bound(CostModel(), ranks, micro_batches, 2 * ranks) == pytest.approx(zbv)
    # the last of 8 ranks: 7 stages to come, 16 Fs and 16 Bs alone, the other 16 of each paired
    expected = 3.5 + 8 + 16 + 16 * 0.85 * 1.5
    assert lower_bound(PAIRED, 8, 16, 17) == pytest.approx(expected)


def test_pairs_only_where_they_pay() -> None:
    """Where a pair takes no less than its parts, a B and then the F are as good, or better."""
    found = search(CostModel(pair_factor=1.1), 4, 8, moves=3000)
    assert not any(pairs(found.schedule, rank) for rank in range(4))
    mixed = CostModel(pair_factor=(0.8, 1.0, 1.3, 0.8))
    start = generate("dualpipev", 4, 10)
    found = search(mixed, 4, 10, moves=3000, start=start)
    assert found.makespan < simulate(start, mixed).makespan
    assert not pairs(found.schedule, 1) + pairs(found.schedule, 2)
    assert pairs(found.schedule, 0) and pairs(found.schedule, 3)


def test_uneven_stages_gain() -> None:
    found = search(HEAVY, 4, 8, moves=15_000, seed=0)
    assert found.makespan < 0.99 * found.start_makespan


def test_start_that_is_given() -> None:
    first = search(PAIRED, 4, 8, moves=3000).schedule
    found = search(PAIRED, 4, 8, moves=3000, seed=1, start=first)
    assert found.makespan <= found.start_makespan == simulate(first, PAIRED).makespan
    assert search(PAIRED, 4, 8, moves=0, start=first).makespan == found.start_makespan


def test_one_rank_is_done_at_once() -> None:
    found = search(CostModel(), 1, 3, seconds=30)
    assert found.optimal and found.makespan == 9 and found.seconds < 5
    assert sum(len(actions(item)) for item in found.schedule.programs[0]) >= 12


def test_refuses() -> None:
    for wrong, line in (
        ({"memory_cap": 0.9}, "searched needs a memory cap of at least 1 full stage, got 0.5"),
        ({"start": generate("dualpipe", 4, 8)}, "dualpipe is not a table of training on a V"),
        ({"start": generate("zbv", 4, 9)}, "zbv is for 4 ranks and 9 micro-batches, not 4 and 8"),
        (
            {"start": generate("dualpipev", 4, 8), "memory_cap": 4},
            "dualpipev holds 4.5 full-stage activations, above 4.0",
        ),
    ):
        with pytest.raises(ScheduleError) as refused:
            search(PAIRED, 4, 8, moves=1, **wrong)
        assert str(refused.value) == line
    with pytest.raises(ScheduleError, match="micro-batches >= 1, got 0"):
        search(PAIRED, 4, 0, moves=1)
