"""The runs that the search evaluates are those of `simulate`, and Ws fill their waits."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain as chained
from itertools import pairwise
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
from parallel.study.search.chain import chain_of
from parallel.study.search.compiled import Compiler
from parallel.study.search.moves import change
from parallel.study.search.run import Run
from parallel.study.search.starts import run_of, start_of
from parallel.study.search.turns import Turn, turns_of
from parallel.study.simulate import simulate
from tests.test_search import COSTS, PAIRED

QUICK = settings(max_examples=40, deadline=None)
# Channels that are kept busy are left to the simulation.
FREE = [replace(costs, message_bytes=0.0) for costs in COSTS]
NAMES = ["zbv", "dualpipev", "dualpipe", "1f1b"]


def handcrafted_run(name: str, costs: CostModel, micro_batches: int, cap: float) -> Run:
    """The run that a search starts with, on 4 ranks."""
    table = generate(name, 4, micro_batches)
    if isinstance(costs.forward, tuple) and table.stages == 4:
        costs = replace(costs, forward=1.0, input_grad=1.2, weight_grad=0.8)
    if isinstance(costs.pair_factor, tuple) and table.flows == 2:
        costs = replace(costs, pair_factor=0.9)
    chain = chain_of(table.placement, micro_batches, costs, max(cap, *check(table).peak_in_flight))
    return start_of(table, Compiler(chain))


def model_of(run: Run, costs: CostModel) -> CostModel:
    """The costs of a run's chain as a cost model."""
    chain = run.compiler.chain
    stages = range(chain.stages)
    pair = [[chain.pair.get((f, b), 0.0) for b in stages] for f in stages]
    return replace(
        costs, forward=chain.forward, input_grad=chain.input_grad, weight_grad=chain.weight_grad,
        pair_factor=1.0, pair=pair,
    )  # fmt: skip


def is_weights(item: Item) -> bool:
    return isinstance(item, Action) and item.kind == "W"


def scrambled(run: Run, changes: int, random: Random) -> Run:
    """`run` after so many random changes that can be followed."""
    while changes:
        rank = random.randrange(len(run.lines))
        turns = run.lines[rank].turns
        changed = change(turns, random.randrange(len(turns)), True, random)
        line = run.compiler.line(changed) if changed else None
        new = run.changed(rank, line) if line else None
        if new:
            run = new
            changes -= 1
    return run


@pytest.mark.parametrize("name", NAMES)
def test_turns_and_back(name: str) -> None:
    """The turns of a run's table are its turns, and the table has every action once."""
    table = generate(name, 4, 8)
    compiler = Compiler(chain_of(table.placement, 8, PAIRED, 9))
    run = run_of(compiler, [turns_of(p) for p in table.programs[: compiler.chain.ranks]])
    back = run.schedule()
    assert [turns_of(p) for p in back.programs] == [turns_of(p) for p in table.programs]
    assert check(back).peak_in_flight and back.placement == table.placement


def test_weights_fill_the_waits() -> None:
    """On one rank nothing waits; on two, a W comes where half of it fits, or the cap wants it."""
    f0, f1, b0, b1 = Turn(forward=0), Turn(forward=1), Turn(backward=0), Turn(backward=1)

    def run(turns: list[Turn], cap: float) -> Run:
        return run_of(Compiler(chain_of(v_placement(1), 2, CostModel(), cap)), [turns])

    plain = run([f0, f0, f1, f1, b1, b0, b1, b0], 2)
    assert plain.weights_before == [[0] * 8] and plain.finish() == [6]
    turns = [f0, f1, b1, b0] * 2
    assert run(turns, 2).weights_before == [[0] * 8]
    assert run(turns, 1.5).weights_before == [[0] * 5 + [1] * 3]
    assert run(turns, 1).weights_before == [[0] * 4 + [1, 2, 2, 2]]
    # I1 I0 of the second rank let the first wait 0.5 + 0.5 + hop for its I0
    two = Compiler(chain_of(v_placement(2), 1, CostModel(hop=0.1), 1))
    order = [[Turn(forward=s), Turn(forward=3 - s), Turn(backward=3 - s), Turn(backward=s)]
             for s in (0, 1)]  # fmt: skip
    assert run_of(two, order).weights_before == [[0, 0, 0, 1], [0, 0, 0, 0]]


def posted_at_once(lowered: Lowered) -> Lowered:
    """The same with every receive posted before the first item."""
    programs = []
    for program in lowered.programs:
        receives = tuple(chained.from_iterable(step.receives for step in program))
        rest = [step._replace(receives=()) for step in program]
        programs.append((rest[0]._replace(receives=receives), *rest[1:]))
    return replace(lowered, programs=tuple(programs))


@QUICK
@given(
    st.sampled_from(FREE), st.sampled_from(NAMES), st.sampled_from([8, 10, 12]),
    st.integers(4, 6), st.randoms(use_true_random=False),
)  # fmt: skip
def test_evaluation_is_the_simulation(
    costs: CostModel, name: str, micro_batches: int, cap: int, random: Random
) -> None:
    run = scrambled(handcrafted_run(name, costs, micro_batches, cap), 25, random)
    costs, chain = model_of(run, costs), run.compiler.chain
    schedule = run.schedule()
    timeline = simulate(posted_at_once(lower(schedule)), costs)
    assert run.makespan == pytest.approx(timeline.makespan)
    assert timeline.makespan <= simulate(schedule, costs).makespan + 1e-9
    for ends, line, spans in zip(run.ends, run.lines, timeline.by_rank):
        starts = [end - step.duration for end, step in zip(ends, line.steps)]
        assert starts == pytest.approx([s.start for s in spans if not is_weights(s.item)])
    # and the table is one, whatever the changes were
    assert max(check(schedule).peak_in_flight) <= chain.cap * schedule.stage_share
    assert timeline.makespan >= lower_bound(chain) - 1e-9


@QUICK
@given(st.sampled_from(FREE), st.floats(-3, 3), st.randoms(use_true_random=False))
def test_only_runs_that_end_too_late_are_given_up(
    costs: CostModel, more: float, random: Random
) -> None:
    run = scrambled(handcrafted_run("zbv", costs, 8, 4.5), 20, random)
    rank = random.randrange(4)
    turns = run.lines[rank].turns
    changed = change(turns, random.randrange(len(turns)), True, random)
    line = run.compiler.line(changed) if changed else None
    new = run.changed(rank, line) if line else None
    if line and new:
        limit = run.makespan + more
        limited = run.changed(rank, line, limit)
        late = new.makespan > limit - 1e-9
        assert limited.ends == new.ends if limited else late


@QUICK
@given(st.sampled_from(FREE), st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_critical_path_has_no_gaps(costs: CostModel, name: str, random: Random) -> None:
    run = scrambled(handcrafted_run(name, costs, 8, 4.5), 20, random)
    path = run.critical()
    rank, position = path[-1]
    start = run.ends[rank][position] - run.lines[rank].steps[position].duration
    assert start == pytest.approx(0.0, abs=1e-9)
    for (rank, position), (other, before) in pairwise(path):
        start = run.ends[rank][position] - run.lines[rank].steps[position].duration
        between = {0.0, costs.hop}  # the V turns on one rank, two flows cross on their ways
        if other == rank:  # and between the two, nothing but Ws
            left, done = run.lines[rank].weights_left, run.weights_before[rank]
            between.add(left[done[before]] - left[done[position]])
        gaps = [abs(start - run.ends[other][before] - each) for each in between]
        assert min(gaps) < 1e-7
