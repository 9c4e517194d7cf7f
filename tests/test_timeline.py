"""What a timeline tells: idle time by cause, the critical path, memory; and the file of costs."""

from __future__ import annotations

import dataclasses
import gc
from itertools import pairwise
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, forward_only, generate
from parallel.schedule.table import Action, Overlap, Schedule, ScheduleError
from parallel.study.costs import CostModel, read_costs, write_costs
from parallel.study.simulate import simulate
from parallel.study.timeline import Idle, Span, Timeline, Transfer
from tests.schedule_strategies import schedules

QUICK = settings(max_examples=80, deadline=None)


def chain(micro_batches: int = 2) -> Schedule:
    """Forwards only on two ranks."""
    return forward_only({(0, 0): 0, (0, 1): 1}, micro_batches)


@st.composite
def cost_models(draw: st.DrawFn) -> CostModel:
    cost = st.integers(1, 8).map(lambda n: n / 4)
    return CostModel(
        forward=draw(cost),
        input_grad=draw(cost),
        weight_grad=draw(cost),
        pair_factor=draw(st.sampled_from([0.75, 1.0])),
        optimizer=draw(st.sampled_from([0.0, 0.5])),
        optimizer_waits=draw(st.booleans()),
        hop=draw(st.sampled_from([0.0, 0.25, 1.0])),
        message_bytes=draw(st.sampled_from([0.0, 1.0])),
        bandwidth=draw(st.sampled_from([0.5, 4.0, inf])),
        pending_fraction=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )


@QUICK
@given(schedules(), cost_models())
def test_causes_add_up_to_the_idle_time(schedule: Schedule, costs: CostModel) -> None:
    timeline = simulate(schedule, costs)
    for causes, idle in zip(timeline.idle_by_cause, timeline.idle, strict=True):
        assert sum(causes) == pytest.approx(idle)
        assert min(causes) >= 0


@QUICK
@given(schedules(), cost_models())
def test_without_transfer_times_nothing_waits_for_one(schedule: Schedule, costs: CostModel) -> None:
    free = dataclasses.replace(costs, hop=0.0, message_bytes=0.0)
    assert all(idle.transfer == 0 for idle in simulate(schedule, free).idle_by_cause)


@QUICK
@given(schedules(), cost_models())
def test_the_critical_path_has_no_gap(schedule: Schedule, costs: CostModel) -> None:
    timeline = simulate(schedule, costs)
    path = timeline.critical_path
    assert path[0].start == 0
    for before, after in pairwise(path):
        assert before.end == after.start
    # It ends where the optimizer that ends last begins.
    optimizer = [end - start for start, end in timeline.optimizer] or [0.0]
    assert timeline.makespan - path[-1].end in optimizer


@QUICK
@given(schedules(), cost_models())
def test_what_is_on_the_critical_path_delays_the_step(schedule: Schedule, costs: CostModel) -> None:
    """The makespan can be no less than the path's length, however fast all else is."""
    timeline = simulate(schedule, costs)
    computing = sum(p.end - p.start for p in timeline.critical_path if isinstance(p, Span))
    crossing = sum(p.end - p.start for p in timeline.critical_path if isinstance(p, Transfer))
    assert computing + crossing == pytest.approx(timeline.critical_path[-1].end)
    assert crossing == 0 or costs.hop or costs.message_bytes


@QUICK
@given(schedules())
def test_memory_over_time_has_the_peak_of_the_table(schedule: Schedule) -> None:
    timeline = simulate(schedule, CostModel(pair_factor=0.85))
    assert timeline.peak_memory == pytest.approx(timeline.peak_in_flight)
    for steps in timeline.memory:
        assert steps[0][0] == 0 and steps[-1][1] == pytest.approx(0)
        assert all(a[0] < b[0] for a, b in pairwise(steps))
        assert min(held for _, held in steps) >= -1e-9


def test_causes_by_hand() -> None:
    # Rank 1 waits for the first forward and its hop, then for the next forward and its hop.
    timeline = simulate(chain(), CostModel(forward=[5.0, 1.0], hop=2.0))
    assert timeline.makespan == 13
    assert timeline.idle_by_cause == (Idle(0, 0, 0, 3), Idle(7, 2, 2, 0))
    first, second = Action("F", 0, 0, 0), Action("F", 0, 0, 1)
    assert [p.item if isinstance(p, Span) else p.message.micro_batch for p in (
        timeline.critical_path
    )] == [first, second, 1, Action("F", 0, 1, 1)]  # fmt: skip


def test_a_pair_waits_for_the_later_of_its_inputs() -> None:
    # Rank 1's pair has its activation early and waits for its gradient.
    schedule = generate("1f1b", 3, 2)
    rank, position = 1, 1
    program = list(schedule.programs[rank])
    assert [str(a)[0] for a in program] == ["F", "F", "B", "B"]
    pair = Overlap(program[position], program[position + 1])
    programs = list(schedule.programs)
    programs[rank] = (program[0], pair, program[3])
    schedule = dataclasses.replace(schedule, programs=tuple(programs))
    check(schedule)
    timeline = simulate(schedule, CostModel(hop=0.5))
    assert timeline.by_rank[1][1].start == 6.5
    assert timeline.idle_by_cause[1] == Idle(1.5, 7.0, 1.0, 2.5)


def test_bandwidth_keeps_a_channel_busy() -> None:
    # A message takes 3 on its channel and 0.5 to arrive: they go one after the other.
    costs = CostModel(forward=1.0, hop=0.5, message_bytes=6.0, bandwidth=2.0)
    timeline = simulate(chain(3), costs)
    assert [(t.start, t.end) for t in timeline.transfers] == [(1, 4.5), (4, 7.5), (7, 10.5)]
    assert timeline.makespan == 11.5
    assert [(p.start, p.end) for p in timeline.critical_path] == [
        (0, 1), (1, 4), (4, 7), (7, 10.5), (10.5, 11.5),
    ]  # fmt: skip
    assert timeline.idle_by_cause[1] == Idle(4.5, 0, 4, 0)


def test_the_optimizer_ends_the_step() -> None:
    schedule = generate("zb-h2", 4, 12)
    costs = CostModel(optimizer=2.0)
    together = simulate(schedule, costs)
    assert together.makespan == 36 + 3 + 2
    assert together.optimizer == ((39, 41),) * 4
    apart = simulate(schedule, dataclasses.replace(costs, optimizer_waits=False))
    assert apart.makespan == 41
    assert apart.optimizer[0] == (36, 38)
    # Each rank's whole work is one block: nothing is idle but the stagger of the ranks.
    assert apart.idle_by_cause == tuple(Idle(rank, 0, 0, 3 - rank) for rank in range(4))
    # Both copies of a stage are updated; a V's two halves are one stage.
    twice = simulate(generate("dualpipe", 4, 8), costs)
    assert {end - start for start, end in twice.optimizer} == {4}
    once = simulate(generate("dualpipev", 4, 8), costs)
    assert {end - start for start, end in once.optimizer} == {2}


def test_memory_by_hand() -> None:
    schedule = dataclasses.replace(
        generate("zb-h1", 1, 1),
        programs=((Action("F", 0, 0, 0), Action("I", 0, 0, 0), Action("W", 0, 0, 0)),),
    )
    timeline = simulate(schedule, CostModel(activation=8.0, pending_fraction=0.25))
    assert timeline.memory == (((0.0, 8.0), (2.0, 2.0), (3.0, 0.0)),)
    # ZB-H1's last rank keeps P - 1 weight gradients back: with a quarter held each, it needs less.
    less = simulate(generate("zb-h1", 4, 12), CostModel(pending_fraction=0.25))
    assert less.peak_memory == (4, 3.25, 2.5, 1.75)


def test_costs_by_rank() -> None:
    schedule = generate("dualpipev", 2, 8)
    slow = simulate(schedule, CostModel(pair_factor=[1.0, 1.0])).makespan
    assert simulate(schedule, CostModel(pair_factor=[0.5, 0.5])).makespan < slow
    with pytest.raises(ScheduleError, match="costs: pair_factor has 3 numbers for 2 ranks"):
        simulate(schedule, CostModel(pair_factor=[1, 1, 1]))


def test_a_pair_costs_what_is_said_for_its_two_stages() -> None:
    schedule = generate("dualpipev", 2, 8)
    pair = [[10.0 * forward + backward for backward in range(4)] for forward in range(4)]
    spans = simulate(schedule, CostModel(pair=pair)).spans
    lengths = {(s.item.forward.stage, s.item.backward.stage): s.end - s.start for s in spans
               if isinstance(s.item, Overlap)}  # fmt: skip
    assert lengths == pytest.approx({(0, 3): 3, (3, 0): 30, (1, 2): 12, (2, 1): 21})
    for wrong in ([[1.0] * 4] * 3, [[1.0] * 4] * 3 + [[1.0]]):
        with pytest.raises(ScheduleError, match="pair must be 4 rows of 4 numbers"):
            simulate(schedule, CostModel(pair=wrong))
    with pytest.raises(ScheduleError, match="exclude each other"):
        simulate(schedule, CostModel(pair=[[1.0] * 4] * 4, pair_factor=0.8))


def test_a_measured_timeline_needs_no_transfers() -> None:
    simulated = simulate(generate("1f1b", 3, 6), CostModel(hop=0.5))
    measured = dataclasses.replace(simulated, transfers=(), costs=CostModel())
    assert measured.idle_by_cause == simulated.idle_by_cause
    spans = [p for p in simulated.critical_path if isinstance(p, Span)]
    assert list(measured.critical_path) == spans


def test_costs_from_a_file(tmp_path: Path) -> None:
    costs = CostModel(
        forward=(1.0, 2.5), pair_factor=0.85, optimizer_waits=False, bandwidth=2e9, hop=1e-5
    )
    write_costs(costs, tmp_path / "new" / "costs.yaml")
    assert read_costs(tmp_path / "new" / "costs.yaml") == costs
    write_costs(CostModel(), tmp_path / "costs.yaml")
    assert read_costs(tmp_path / "costs.yaml") == CostModel()
    pairs = CostModel(pair=((1.0, 2.0), (2.0, 3.0)))
    write_costs(pairs, tmp_path / "pairs.yaml")
    assert read_costs(tmp_path / "pairs.yaml") == pairs
    (tmp_path / "some.yaml").write_text("weight_grad: 2\nbandwidth: .inf\n")
    assert read_costs(tmp_path / "some.yaml") == CostModel(weight_grad=2)
    (tmp_path / "none.yaml").write_text("# nothing\n")
    assert read_costs(tmp_path / "none.yaml") == CostModel()


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("forwards: 1", "has a key 'forwards'; there are forward, input_grad"),
        (
            "forward: fast",
            "forward must be a number from 0 to 1e+15, or a list of one for each stage, ",
        ),
        ("forward: [1, -1]", "got [1, -1]"),
        ("forward: .nan", "got nan"),
        ("forward: []", "got []"),
        ("pair_factor: x", "a list of one for each rank, got 'x'"),
        ("hop: [1, 2]", "hop must be a number from 0 to 1e+15, got [1, 2]"),
        ("bandwidth: 0", "bandwidth must be a number from 1e-15 up, got 0"),
        ("optimizer_waits: 1", "optimizer_waits must be true or false, got 1"),
        ("pair: 2", "pair must be a list of lists of numbers"),
        ("pair: [[1, -1]]", "one for each two stages, got [[1, -1]]"),
        ("- 1", "must be keys and their costs, not [1]"),
        ("a: [1", "is not YAML: "),
        ("forward: 1\nforward: 2", "the key forward is there more than once"),
        ("forward: &a [1, *a]", "the alias *a is not allowed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nforward: *b", "the alias *a is not allowed"),
        ("forward: " + "[" * 100_000, "nested deeper than 20"),
        ("forward: 2001-99-99", "is not YAML: "),
        ("forward: " + "[" * 15 + "1" + "]" * 15, "forward must be a number"),
        ("? [1, 2]\n: 3", "is not YAML: "),
        ("forward: 1.0e+300", "got 1e+300"),
        ("forward: 1" + "0" * 400, "a number of 1329 bits"),
        ("forward: 0x1" + "0" * 9000, "a number of 36001 bits"),
        ("pending_fraction: 2", "pending_fraction must be a number from 0 to 1"),
        ("\x1b[31m: 1", "is not YAML: "),
        ('"\\x1b[31m": 1', r"has a key '\x1b[31m'"),
        ("#" * 2**20 + "#", "is larger than 1,048,576 bytes"),
    ],
)
def test_a_file_of_costs_is_refused_in_one_line(text: str, needs: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text(text)
    with pytest.raises(ScheduleError) as refused:
        read_costs(path)
    assert needs in str(refused.value)
    assert str(refused.value).startswith(f"costs: {path}")
    assert "\n" not in str(refused.value)


def test_the_collector_is_left_as_it_was() -> None:
    assert gc.isenabled()
    with pytest.raises(ScheduleError):
        simulate(generate("1f1b", 2, 2), CostModel(forward=[1]))
    assert gc.isenabled()


@pytest.mark.parametrize("name", GENERATORS)
def test_an_empty_path_is_no_error(name: str) -> None:
    schedule = generate(name, 2, 4)
    empty = Timeline(schedule, ())
    assert empty.critical_path == ()
    assert empty.idle_by_cause == (Idle(0, 0, 0, 0),) * 2
