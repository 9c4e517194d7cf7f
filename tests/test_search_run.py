"""The runs that the search evaluates are those of `simulate`, and Ws fill their waits."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.schedule.check import check
from parallel.schedule.generators import generate
from parallel.schedule.generators.placements import v_placement
from parallel.schedule.lower import Lowered, lower
from parallel.schedule.table import Action, Item
from parallel.study.costs import CostModel
from parallel.study.search.bound import lower_bound
from parallel.study.search.moves import propose
from parallel.study.search.orders import Line, Orders
from parallel.study.search.run import Run
from parallel.study.search.starts import run_of, start_of
from parallel.study.search.words import words_of
from parallel.study.simulate import simulate
from tests.test_search import COSTS, PAIRED

QUICK = settings(max_examples=40, deadline=None)


def handcrafted_run(orders: Orders, name: str) -> Run:
    """The run that a search starts with."""
    return start_of(generate(name, orders.ranks, orders.micro_batches), orders)


def is_weights(item: Item) -> bool:
    return isinstance(item, Action) and item.kind == "W"


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
    """The words of a table's run are its words, and the table has every action once."""
    schedule = generate(name, 3, 7)
    words = words_of(schedule, [True] * 3)
    table = run_of(Orders(PAIRED, 3, 7, 7), words).schedule()
    assert words_of(table, [True] * 3) == words
    assert check(table).peak_in_flight and table.placement == schedule.placement == v_placement(3)


def test_weights_fill_the_waits() -> None:
    """On one rank nothing waits; on two, a W comes where half of it fits, or the cap wants it."""
    word = [0, 0, 1, 1, 3, 2, 3, 2]  # F0 F0 F1 F1 I1 I0 I1 I0
    run = run_of(Orders(CostModel(), 1, 2, 4), [word])
    assert run.filled == [[0] * 8] and run.finish() == [6]
    word = [0, 1, 3, 2] * 2
    assert run_of(Orders(CostModel(), 1, 2, 4), [word]).filled == [[0] * 8]
    assert run_of(Orders(CostModel(), 1, 2, 3), [word]).filled == [[0] * 5 + [1] * 3]
    assert run_of(Orders(CostModel(), 1, 2, 2), [word]).filled == [[0] * 4 + [1, 2, 2, 2]]
    # I1 I0 of the second rank let the first wait 0.5 + 0.5 + hop for its I0
    orders = Orders(CostModel(hop=0.1), 2, 1, 2)
    assert run_of(orders, [[0, 1, 3, 2]] * 2).filled == [[0, 0, 0, 1], [0, 0, 0, 0]]


def posted_at_once(lowered: Lowered) -> Lowered:
    """The same with every receive posted before the first item."""
    programs = []
    for program in lowered.programs:
        receives = tuple(chain.from_iterable(step.receives for step in program))
        rest = [step._replace(receives=()) for step in program]
        programs.append((rest[0]._replace(receives=receives), *rest[1:]))
    return replace(lowered, programs=tuple(programs))


@QUICK
@given(
    st.sampled_from(COSTS), st.sampled_from(["zbv", "dualpipev"]), st.integers(8, 10),
    st.integers(8, 12), st.randoms(use_true_random=False),
)  # fmt: skip
def test_evaluation_is_the_simulation(
    costs: CostModel, name: str, micro_batches: int, cap: int, random: Random
) -> None:
    orders = Orders(costs, 4, micro_batches, max(cap, 9 if name == "dualpipev" else 8))
    run = scrambled(handcrafted_run(orders, name), 25, random)
    schedule = run.schedule()
    timeline = simulate(posted_at_once(lower(schedule)), costs)
    assert max(run.finish()) == pytest.approx(timeline.makespan)
    assert timeline.makespan <= simulate(schedule, costs).makespan + 1e-9
    for ends, line, spans in zip(run.ends, run.lines, timeline.by_rank):
        starts = [end - op.duration for end, op in zip(ends, line.ops)]
        assert starts == pytest.approx([s.start for s in spans if not is_weights(s.item)])
    # and the table is one, whatever the changes were
    assert max(check(schedule).peak_in_flight) <= orders.cap / 2
    assert timeline.makespan >= lower_bound(costs, 4, micro_batches, orders.cap) - 1e-9


@QUICK
@given(st.sampled_from(COSTS), st.floats(-3, 3), st.randoms(use_true_random=False))
def test_only_runs_that_end_too_late_are_given_up(
    costs: CostModel, more: float, random: Random
) -> None:
    run = scrambled(handcrafted_run(Orders(costs, 4, 8, 9), "zbv"), 20, random)
    rank = random.randrange(4)
    word = run.lines[rank].word
    changed = propose(word, random.randrange(len(word)), True, random)
    line = run.orders.line(rank, changed) if changed else None
    new = run.changed(rank, line) if line else None
    if line and new:
        limit = max(run.finish()) + more
        limited = run.changed(rank, line, limit)
        late = max(new.finish()) > limit - 1e-9
        assert limited.ends == new.ends if limited else late


@QUICK
@given(st.sampled_from(COSTS), st.randoms(use_true_random=False))
def test_critical_path_has_no_gaps(costs: CostModel, random: Random) -> None:
    if costs.transmission:
        return
    run = scrambled(handcrafted_run(Orders(costs, 4, 8, 9), "zbv"), 20, random)
    path = run.critical()
    rank, position = path[-1]
    start = run.ends[rank][position] - run.lines[rank].ops[position].duration
    assert start == pytest.approx(0.0, abs=1e-9)
    for (rank, position), (other, before) in pairwise(path):
        start = run.ends[rank][position] - run.lines[rank].ops[position].duration
        after = costs.hop
        if other == rank:  # and between the two, nothing but Ws
            rest, filled = run.lines[rank].rest, run.filled[rank]
            after = rest[filled[before]] - rest[filled[position]]
        assert start == pytest.approx(run.ends[other][before] + after, abs=1e-7)
