"""The searched schedule: never worse than its start, under the cap, and above its lower bound."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.pipeline.check import check
from parallel.pipeline.costs import CostModel
from parallel.pipeline.generators import GENERATORS, generate
from parallel.pipeline.schedule import Overlap, Schedule, ScheduleError, actions
from parallel.pipeline.search import Found, Progress, search
from parallel.pipeline.search.bound import lower_bound
from parallel.pipeline.search.moves import propose
from parallel.pipeline.search.orders import Line, Orders, v_placement, words_of
from parallel.pipeline.search.run import Run
from parallel.pipeline.simulate import simulate

QUICK = settings(max_examples=40, deadline=None)
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


def run_of(orders: Orders, schedule: Schedule) -> Run:
    lines = []
    for rank, word in enumerate(words_of(schedule, [True] * schedule.ranks)):
        line = orders.line(rank, word)
        assert line
        lines.append(line)
    run = Run(orders, lines)
    assert run.follow()
    return run


def scrambled(run: Run, changes: int, random: Random) -> Run:
    """`run` after so many random changes that can be followed."""
    while changes:
        rank = random.randrange(run.orders.ranks)
        word = run.lines[rank].word
        changed = propose(word, random.randrange(len(word)), True, random)
        line: Line | None = run.orders.line(rank, changed) if changed else None
        new = run.changed(rank, line) if line else None
        if new:
            run = new
            changes -= 1
    return run


@pytest.mark.parametrize("name", ["dualpipev", "zbv"])
def test_words_and_back(name: str) -> None:
    schedule = generate(name, 3, 7)
    run = run_of(Orders(PAIRED, 3, 7, 7), schedule)
    assert run.schedule().programs == schedule.programs
    assert run.schedule().placement == schedule.placement == v_placement(3)


@QUICK
@given(
    st.sampled_from(COSTS), st.sampled_from(["zbv", "dualpipev"]), st.integers(8, 10),
    st.integers(8, 12), st.randoms(use_true_random=False),
)  # fmt: skip
def test_evaluation_is_the_simulation(
    costs: CostModel, name: str, micro_batches: int, cap: int, random: Random
) -> None:
    orders = Orders(costs, 4, micro_batches, max(cap, 9 if name == "dualpipev" else 8))
    run = scrambled(run_of(orders, generate(name, 4, micro_batches)), 25, random)
    schedule = run.schedule()
    timeline = simulate(schedule, costs)
    assert max(run.finish()) == pytest.approx(timeline.makespan)
    for ends, spans in zip(run.ends, timeline.by_rank):
        assert ends == pytest.approx([span.end for span in spans])
    # and the table is one, whatever the changes were
    assert max(check(schedule).peak_in_flight) <= orders.cap / 2
    assert timeline.makespan >= lower_bound(costs, 4, micro_batches, orders.cap) - 1e-9


@QUICK
@given(st.sampled_from(COSTS), st.floats(-3, 3), st.randoms(use_true_random=False))
def test_only_runs_that_end_too_late_are_given_up(
    costs: CostModel, more: float, random: Random
) -> None:
    run = scrambled(run_of(Orders(costs, 4, 8, 9), generate("zbv", 4, 8)), 20, random)
    rank = random.randrange(4)
    word = run.lines[rank].word
    changed = propose(word, random.randrange(len(word)), True, random)
    line = run.orders.line(rank, changed) if changed else None
    new = run.changed(rank, line) if line else None
    if line and new:
        limit = max(ends[-1] for ends in run.ends) + more
        limited = run.changed(rank, line, limit)
        late = max(ends[-1] for ends in new.ends) > limit
        assert limited.ends == new.ends if limited else late


@QUICK
@given(st.sampled_from(COSTS), st.randoms(use_true_random=False))
def test_critical_path_has_no_gaps(costs: CostModel, random: Random) -> None:
    if costs.transmission:
        return
    run = scrambled(run_of(Orders(costs, 4, 8, 9), generate("zbv", 4, 8)), 20, random)
    path = run.critical()
    rank, position = path[-1]
    begin = run.ends[rank][position] - run.lines[rank].ops[position][0]
    assert begin == pytest.approx(0.0, abs=1e-9)
    for (rank, position), (other, before) in pairwise(path):
        begin = run.ends[rank][position] - run.lines[rank].ops[position][0]
        hop = costs.hop if other != rank else 0.0
        assert begin == pytest.approx(run.ends[other][before] + hop, abs=1e-7)


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
    begin = search(PAIRED, 4, 8, moves=3000).schedule
    found = search(PAIRED, 4, 8, moves=3000, seed=1, start=begin)
    assert found.makespan <= found.start_makespan == simulate(begin, PAIRED).makespan
    assert search(PAIRED, 4, 8, moves=0, start=begin).makespan == found.start_makespan


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
    with pytest.raises(ScheduleError, match="micro_batches >= 1, got 0"):
        search(PAIRED, 4, 0, moves=1)
