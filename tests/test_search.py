"""The searched schedule: never worse than its start, under the cap, and above its lower bound."""

from __future__ import annotations

import pytest

from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.generators.placements import one_stage_each, v_placement
from parallel.schedule.table import Overlap, Placement, Schedule, ScheduleError, actions
from parallel.study.costs import CostModel
from parallel.study.search import Found, Progress, search
from parallel.study.search.bound import lower_bound
from parallel.study.search.chain import chain_of
from parallel.study.search.compiled import Compiler
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


V4 = v_placement(4)


def two_flows(ranks: int) -> Placement:
    return generate("dualpipe", ranks, 2).placement


def pairs(schedule: Schedule, rank: int) -> int:
    return sum(isinstance(item, Overlap) for item in schedule.programs[rank])


def test_search_improves_on_the_handcrafted() -> None:
    reports: list[Progress] = []
    found = search(PAIRED, V4, 8, moves=200_000, seed=1, progress=reports.append)
    assert (found.start, found.start_makespan) == ("dualpipev", pytest.approx(24.75))
    assert found.lower_bound == pytest.approx(23.7)
    assert found.optimal and found.makespan == pytest.approx(23.7)
    assert simulate(found.schedule, PAIRED).makespan == found.makespan
    assert max(check(found.schedule).peak_in_flight) <= 4.5
    assert found.schedule.name == "searched"
    assert found.moves < 50_000
    for report in reports:
        assert report.lower_bound <= report.best <= found.start_makespan


def test_search_stops_at_its_bound() -> None:
    costs = CostModel(pair_factor=(0.8, 1.0, 1.3, 0.8))
    found = search(costs, V4, 10, moves=50_000)
    assert found.optimal and found.makespan == 31 < found.start_makespan
    assert found.moves < 5000


def test_deterministic_by_seed() -> None:
    def run(seed: int) -> Found:
        return search(HEAVY, V4, 8, moves=4000, seed=seed)

    assert run(3).schedule == run(3).schedule
    assert run(3).schedule != run(4).schedule


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("memory_cap", [1.0, 2.5, 4.0, 4.5, 6.0])
def test_cap_start_and_bound(costs: CostModel, memory_cap: float) -> None:
    found = search(costs, V4, 9, memory_cap=memory_cap, moves=600, seed=0)
    timeline = simulate(found.schedule, costs)
    assert max(check(found.schedule).peak_in_flight) <= memory_cap
    assert timeline.makespan == found.makespan <= found.start_makespan
    assert found.lower_bound <= found.makespan + 1e-9
    expected = {4.0: "zbv", 4.5: "", 6.0: ""}.get(memory_cap, "list scheduling")
    assert found.start == expected or not expected


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("costs", [c for c in COSTS if not isinstance(c.pair_factor, tuple)])
def test_bound_is_below_every_table(name: str, costs: CostModel) -> None:
    for ranks in (1, 2, 4, 6):
        for micro_batches in (2, 6, 2 * ranks, 2 * ranks + 6):
            try:
                schedule = generate(name, ranks, micro_batches)
            except ScheduleError:
                continue
            if costs is HEAVY:
                even = [schedule.stage_share] * (schedule.stages - 1)
                costs = CostModel((*even, 1.5), (*even, 1.2), pair_factor=0.9, hop=0.03)
            cap = max(check(schedule).peak_in_flight)
            for held in (cap, cap + 3):
                chain = chain_of(schedule.placement, micro_batches, costs, held)
                assert lower_bound(chain) <= simulate(schedule, costs).makespan + 1e-9
            if isinstance(costs.forward, tuple):
                costs = HEAVY


def test_bound_by_hand() -> None:
    """ZBV without pairs is as soon as can be; with one rank there is nothing but work."""
    for ranks in (1, 2, 4, 8):
        micro_batches = 2 * ranks
        zbv = simulate(generate("zbv", ranks, micro_batches), CostModel()).makespan
        chain = chain_of(v_placement(ranks), micro_batches, CostModel(), ranks)
        assert lower_bound(chain) == pytest.approx(zbv)
    # the last of 8 ranks: 7 stages to come, 16 Fs and 16 Bs alone, the other 16 of each paired
    expected = 3.5 + 8 + 16 + 16 * 0.85 * 1.5
    assert lower_bound(chain_of(v_placement(8), 16, PAIRED, 8.5)) == pytest.approx(expected)
    # Rank 7 of 16 in two flows, if W is short: after its last backward the gradient goes back
    # through 7 more stages and W of stage 0, and it has 16 Ws to do meanwhile.
    costs = CostModel(weight_grad=0.25, pair_factor=0.6)
    first_backward, work = 16 + 7, 104 * 0.6 * 2.25 + 16 * 1.25
    idle = (7 + 0.25) - 16 * 0.25
    chain = chain_of(two_flows(16), 120, costs, None)
    assert lower_bound(chain) == pytest.approx(first_backward + work + idle)


def test_pairs_only_where_they_pay() -> None:
    """Where a pair takes no less than its parts, a B and then the F are as good, or better."""
    found = search(CostModel(pair_factor=1.1), V4, 8, moves=3000)
    assert not any(pairs(found.schedule, rank) for rank in range(4))
    mixed = CostModel(pair_factor=(0.8, 1.0, 1.3, 0.8))
    start = start_of(generate("dualpipev", 4, 10), Compiler(chain_of(V4, 10, mixed, None)))
    assert [pairs(start.schedule(), rank) > 0 for rank in range(4)] == [True, False, False, True]


def test_uneven_stages_gain() -> None:
    found = search(HEAVY, V4, 8, moves=15_000, seed=0)
    assert found.makespan < 0.99 * found.start_makespan


@pytest.mark.parametrize("placement", [two_flows(8), v_placement(4)], ids=["dualpipe", "v"])
def test_a_gain_stays_however_many_micro_batches(placement: Placement) -> None:
    few, many = (search(PAIRED, placement, m, moves=6000) for m in (24, 200))
    assert max(check(many.schedule).peak_in_flight) <= 9
    gains = [found.start_makespan - found.makespan for found in (few, many)]
    assert gains[0] > 0 and gains[1] >= 0.5 * gains[0]
    assert simulate(many.schedule, PAIRED).makespan == many.makespan


def test_two_flows_are_mirror_images() -> None:
    table = search(PAIRED, two_flows(4), 10, moves=2000).schedule
    for rank in range(4):
        mirrored = [
            [(a.kind, 1 - a.flow, a.stage, a.micro_batch) for a in actions(item)]
            for item in table.programs[3 - rank]
        ]
        own = [[(a.kind, a.flow, a.stage, a.micro_batch) for a in actions(item)]
               for item in table.programs[rank]]  # fmt: skip
        assert own == mirrored


def test_any_number_under_any_cap() -> None:
    """List scheduling, where no handcrafted table fits."""
    for placement, cap in ((one_stage_each(3), 1), (two_flows(4), 2), (v_placement(3), 1.5)):
        for micro_batches in (2, 6, 14):
            found = search(PAIRED, placement, micro_batches, memory_cap=cap, moves=0)
            assert max(check(found.schedule).peak_in_flight) <= cap
            assert found.lower_bound <= found.makespan


def test_one_rank_is_done_at_once() -> None:
    found = search(CostModel(), v_placement(1), 3, seconds=30)
    assert found.optimal and found.makespan == 9 and found.seconds < 5
    assert sum(len(actions(item)) for item in found.schedule.programs[0]) >= 12


def test_refuses() -> None:
    opposite = "searched needs one flow, or two in opposite directions"
    same = {(0, 0): 0, (0, 1): 1, (1, 0): 0, (1, 1): 1}
    by_rank = CostModel(pair_factor=(0.8, 0.8, 0.8, 0.9))
    for placement, costs, cap, line in (
        (V4, PAIRED, 0.9, "searched needs a memory cap of at least 1, got 0.9"),
        (two_flows(4), PAIRED, 1, "searched needs a memory cap of at least 2, got 1"),
        (same, PAIRED, None, opposite),
        (two_flows(4), by_rank, None,
         "searched with two flows needs the same pair_factor on ranks 0 and 3"),
        (V4, CostModel([1.0]), None, "costs: forward has 1 numbers for 8 stages"),
    ):  # fmt: skip
        with pytest.raises(ScheduleError) as refused:
            search(costs, placement, 8, memory_cap=cap, moves=1)
        assert str(refused.value) == line
    with pytest.raises(ScheduleError, match="micro-batches >= 1, got 0"):
        search(PAIRED, V4, 0, moves=1)
    with pytest.raises(ScheduleError, match="9 micro-batches do not divide into 2 flows"):
        search(PAIRED, two_flows(4), 9, moves=1)
