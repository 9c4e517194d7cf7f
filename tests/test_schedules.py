"""The schedule table and all that reads it without a process: generators, check, lowering,
simulation, picture and their command."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.pipeline.check import check, check_lowered
from parallel.pipeline.draw import save
from parallel.pipeline.generators import GENERATORS, forward_only, generate
from parallel.pipeline.lower import Lowered, Message, inputs, lower, received, sent
from parallel.pipeline.schedule import Action, Item, Overlap, Schedule, ScheduleError, actions
from parallel.pipeline.simulate import CostModel, Timeline, simulate

HERE = Path(__file__).parent
QUICK = settings(max_examples=150, deadline=None)
PEAK = {
    "gpipe": lambda ranks, micro_batches: micro_batches,
    "1f1b": lambda ranks, micro_batches: min(ranks, micro_batches),
    "interleaved": lambda ranks, micro_batches: min((3 * ranks - 1) / 2, micro_batches),
    "zb-h1": lambda ranks, micro_batches: min(ranks, micro_batches),
    "zb-h2": lambda ranks, micro_batches: min(2 * ranks - 1, micro_batches),
    "zbv": lambda ranks, micro_batches: min(ranks, micro_batches),
    "dualpipe": lambda ranks, micro_batches: ranks + 1,
    "dualpipev": lambda ranks, micro_batches: ranks + 0.5,
}


@st.composite
def schedules(draw: st.DrawFn, names: tuple[str, ...] = tuple(GENERATORS)) -> Schedule:
    """Any schedule at any small size it supports."""
    name = draw(st.sampled_from(names))
    if name == "dualpipe":
        ranks = 2 * draw(st.integers(1, 4))
        return generate(name, ranks, 2 * ranks + 2 * draw(st.integers(0, 6)))
    ranks = draw(st.integers(1, 7))
    if name == "interleaved":
        return generate(name, ranks, ranks * draw(st.integers(1, 4)))
    least = 2 * ranks if name == "dualpipev" else 1
    return generate(name, ranks, least + draw(st.integers(0, 12)))


def with_program(schedule: Schedule, rank: int, program: list[Item]) -> Schedule:
    programs = list(schedule.programs)
    programs[rank] = tuple(program)
    return dataclasses.replace(schedule, programs=tuple(programs))


def coordinates(action: Action) -> str:
    return f"(flow {action.flow}, stage {action.stage}, micro-batch {action.micro_batch})"


def any_item(data: st.DataObject, schedule: Schedule) -> tuple[int, int]:
    """Some (rank, position)."""
    rank = data.draw(st.integers(0, schedule.ranks - 1))
    return rank, data.draw(st.integers(0, len(schedule.programs[rank]) - 1))


# --- Generators ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 2), (2, 5), (3, 6), (5, 17), (8, 16)])
def test_the_first_half_of_dualpipe_is_dualpipev(ranks: int, micro_batches: int) -> None:
    double = generate("dualpipe", 2 * ranks, 2 * micro_batches)
    folded = generate("dualpipev", ranks, micro_batches)
    for rank in range(ranks):
        assert as_recorded(double, rank) == as_recorded(folded, rank)


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
        ("dualpipe", 4, 6, "pipeline.micro_batches >= 2 x mesh.pipeline = 8, got 6"),
        ("dualpipe", 3, 8, "an even mesh.pipeline, got 3"),
        ("dualpipe", 4, 9, "an even pipeline.micro_batches, got 9"),
        ("dualpipev", 4, 7, "pipeline.micro_batches >= 2 x mesh.pipeline = 8, got 7"),
        ("dualpipev", 0, 4, "mesh.pipeline >= 1, got 0"),
        ("interleaved", 4, 6, "a multiple of mesh.pipeline = 4, got 6: set pipeline.micro_batches"),
        ("zb-h1", 0, 4, "mesh.pipeline >= 1, got 0"),
        ("zb-h2", 2, 0, "pipeline.micro_batches >= 1, got 0"),
        ("zbv", 2, 0, "pipeline.micro_batches >= 1, got 0"),
        ("1f1b", 2, 0, "pipeline.micro_batches >= 1, got 0"),
        ("gpipe", 0, 1, "mesh.pipeline >= 1, got 0"),
        ("two-pipes", 2, 4, "pipeline.schedule: no schedule is called 'two-pipes'"),
    ],
)
def test_refused_numbers(name: str, ranks: int, micro_batches: int, needs: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        generate(name, ranks, micro_batches)
    assert needs in str(refused.value)
    assert "\n" not in str(refused.value)


# --- Check --------------------------------------------------------------------------------------


def followable(schedule: Schedule) -> bool:
    """Whether the programs can be followed, by an algorithm that shares nothing with the check."""
    made: dict[tuple, tuple[int, int]] = {}
    for rank, position, item in schedule.items():
        for a in actions(item):
            made[a.kind.replace("I", "B"), a.flow, a.stage, a.micro_batch] = rank, position
    graph: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for rank, position, item in schedule.items():
        before = {(rank, position - 1)} if position else set()
        for a in actions(item):
            places = {
                "F": [("F", a.stage - 1)],
                "W": [("B", a.stage)],
            }.get(a.kind, [("F", a.stage), ("B", a.stage + 1)])
            wanted = [(kind, a.flow, stage, a.micro_batch) for kind, stage in places]
            before |= {made[key] for key in wanted if key in made}
        graph[rank, position] = before
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return False
    return True


@QUICK
@given(schedules(), st.data())
def test_check_catches_swapped_items(schedule: Schedule, data: st.DataObject) -> None:
    rank, position = any_item(data, schedule)
    other = data.draw(st.integers(0, len(schedule.programs[rank]) - 1))
    program = list(schedule.programs[rank])
    program[position], program[other] = program[other], program[position]
    mutant = with_program(schedule, rank, program)
    try:
        check(mutant)
    except ScheduleError as error:
        assert str(error).startswith("rank ")
        assert not followable(mutant)
    else:
        assert followable(mutant)


def test_a_swap_is_named() -> None:
    schedule = generate("1f1b", 2, 4)
    program = list(schedule.programs[1])
    program[0], program[1] = program[1], program[0]
    expected = (
        r"rank 1, position 0: B\(flow 0, stage 1, micro-batch 0\) waits for "
        r"F\(flow 0, stage 1, micro-batch 0\), which comes only at position 1"
    )
    with pytest.raises(ScheduleError, match=expected):
        check(with_program(schedule, 1, program))


def test_a_circle_between_ranks_is_named() -> None:
    schedule = generate("gpipe", 2, 2)
    first, second = list(schedule.programs[0]), list(schedule.programs[1])
    first[1], first[2] = first[2], first[1]  # F0 B0 F1 B1, while rank 1 runs F0 F1 B0 B1
    mutant = with_program(with_program(schedule, 0, first), 1, second)
    expected = (
        r"rank 0, position 1: B\(flow 0, stage 0, micro-batch 0\) waits for "
        r"B\(flow 0, stage 1, micro-batch 0\), which cannot run before: rank 1 has it at position 2"
    )
    with pytest.raises(ScheduleError, match=expected):
        check(mutant)


@QUICK
@given(schedules(), st.data())
def test_check_catches_a_dropped_item(schedule: Schedule, data: st.DataObject) -> None:
    rank, position = any_item(data, schedule)
    program = list(schedule.programs[rank])
    dropped = program.pop(position)
    with pytest.raises(ScheduleError, match=r"^rank \d+, position \d+: ") as caught:
        check(with_program(schedule, rank, program))
    assert any(coordinates(action) in str(caught.value) for action in actions(dropped))


@QUICK
@given(schedules(), st.data())
def test_check_catches_a_repeated_item(schedule: Schedule, data: st.DataObject) -> None:
    rank, position = any_item(data, schedule)
    program = list(schedule.programs[rank])
    place = data.draw(st.integers(position + 1, len(program)))
    program.insert(place, program[position])
    with pytest.raises(ScheduleError) as caught:
        check(with_program(schedule, rank, program))
    first = actions(program[place])[0]
    expected = f"rank {rank}, position {place}: {first} repeats {first} of position {position}"
    assert str(caught.value) == expected


@QUICK
@given(schedules(), st.data())
def test_check_catches_the_wrong_rank(schedule: Schedule, data: st.DataObject) -> None:
    if schedule.ranks == 1:
        return
    rank, position = any_item(data, schedule)
    other = (rank + data.draw(st.integers(1, schedule.ranks - 1))) % schedule.ranks
    stolen = list(schedule.programs[rank])
    moved = stolen.pop(position)
    place = data.draw(st.integers(0, len(schedule.programs[other])))
    program = list(schedule.programs[other])
    program.insert(place, moved)
    mutant = with_program(with_program(schedule, rank, stolen), other, program)
    with pytest.raises(ScheduleError) as caught:
        check(mutant)
    start = f"rank {other}, position {place}: {actions(moved)[0]} has a stage"
    assert str(caught.value).startswith(start)
    assert f"placed on rank {rank}" in str(caught.value)


def test_check_refuses_what_does_not_belong() -> None:
    schedule = generate("1f1b", 1, 2)
    forward, backward = Action("F", 0, 0, 0), Action("B", 0, 0, 0)
    cases = [
        ([Overlap(backward, forward)], "is not a pair of an F and a B"),
        ([Overlap(forward, backward)], "waits for F"),
        ([Action("F", 0, 0, 2)], "is not one of 2 micro-batches"),
        ([Action("F", 0, 7, 0)], "no rank holds it"),
        ([*schedule.programs[0], Action("W", 0, 0, 0)], "follows a B, which left none"),
        ([forward, Action("I", 0, 0, 0), *schedule.programs[0][2:]], "ends without W"),
    ]
    for program, message in cases:
        with pytest.raises(ScheduleError, match=message):
            check(with_program(schedule, 0, program))
    table = dataclasses.replace(schedule, training=False)
    with pytest.raises(ScheduleError, match="in a table of forwards only"):
        check(table)
    with pytest.raises(ScheduleError, match="ends without B or I"):
        check(dataclasses.replace(forward_only(schedule.placement, 2), training=True))


# --- Lowering -----------------------------------------------------------------------------------


@QUICK
@given(schedules(), st.integers(2, 5))
def test_sends_and_receives_match_one_to_one_and_in_order(schedule: Schedule, ahead: int) -> None:
    lowered = lower(schedule, ahead)
    check_lowered(lowered)
    sends, receives = {}, {}
    for rank, program in enumerate(lowered.programs):
        for position, step in enumerate(program):
            for m in step.sends:
                assert m.source == rank != m.destination
                sends.setdefault((m.source, m.destination), []).append(m)
            for m in step.receives:
                assert m.destination == rank
                receives.setdefault((m.source, m.destination), []).append(m)
            posted = [m for earlier in program[: position + 1] for m in earlier.receives]
            soon = program[position : position + ahead + 1]
            assert {m for s in soon for m in inputs(schedule, s.item)} <= set(posted)
    assert sends == receives
    everything = [m for messages in sends.values() for m in messages]
    assert len(everything) == len(set(everything))
    assert all(
        a.kind != "W" or sent(schedule, a) is received(schedule, a) is None
        for _, _, item in schedule.items()
        for a in actions(item)
    )


def test_a_pair_sends_the_gradient_first() -> None:
    steps = [s for p in lower(generate("dualpipe", 4, 8)).programs for s in p]
    sends = [s.sends for s in steps if isinstance(s.item, Overlap) and len(s.sends) == 2]
    assert sends
    assert all([m.kind for m in pair] == ["gradient", "activation"] for pair in sends)


def test_neighbours_on_one_rank_need_no_message() -> None:
    lowered = lower(generate("dualpipev", 1, 4))
    assert all(not step.sends and not step.receives for step in lowered.programs[0])
    schedule = generate("dualpipev", 3, 6)
    turn = Action("F", 0, 2, 0)
    assert sent(schedule, turn) is None
    assert received(schedule, Action("F", 0, 3, 0)) is None
    assert received(schedule, Action("B", 0, 2, 0)) is None


def with_step(lowered: Lowered, rank: int, position: int, **changes: tuple) -> Lowered:
    programs = [list(program) for program in lowered.programs]
    programs[rank][position] = programs[rank][position]._replace(**changes)
    return Lowered(lowered.schedule, tuple(map(tuple, programs)))


@QUICK
@given(schedules(), st.data())
def test_check_catches_a_reversed_channel(schedule: Schedule, data: st.DataObject) -> None:
    lowered = lower(schedule)
    pairs = [
        (rank, position, order)
        for rank, program in enumerate(lowered.programs)
        for position, step in enumerate(program)
        for order in (step.sends, step.receives)
        if len({m.source for m in order}) == len({m.destination for m in order}) == 1
        and len(order) > 1
    ]
    if not pairs:
        return
    rank, position, order = data.draw(st.sampled_from(pairs))
    side = "receives" if order[0].destination == rank else "sends"
    with pytest.raises(ScheduleError, match=f"^rank {rank}, position {position}: "):
        check_lowered(with_step(lowered, rank, position, **{side: order[::-1]}))


def test_check_catches_lost_messages() -> None:
    lowered = lower(generate("1f1b", 2, 4))
    position = max(i for i, step in enumerate(lowered.programs[0]) if step.receives)
    with pytest.raises(ScheduleError, match=r"^rank 1, position 7: B.* which is never received"):
        check_lowered(with_step(lowered, 0, position, receives=()))
    with pytest.raises(ScheduleError, match=r"^rank 1, position 1: B.* sends nothing, but makes"):
        check_lowered(with_step(lowered, 1, 1, sends=()))
    extra = lowered.programs[0][position].receives
    with pytest.raises(ScheduleError, match=r"^rank 0, position 7: B.* which is never sent"):
        check_lowered(with_step(lowered, 0, 7, receives=extra))


def test_check_catches_a_receive_posted_after_its_use() -> None:
    # Evaluation on two ranks: the only receive moved behind the item that needs it.
    lowered = lower(forward_only({(0, 0): 0, (0, 1): 1}, 2))
    late = lowered.programs[1][0].receives
    moved = with_step(with_step(lowered, 1, 0, receives=()), 1, 1, receives=late)
    expected = r"^rank 0, position 0: F.* is blocked sending .* whose receive is not posted"
    with pytest.raises(ScheduleError, match=expected):
        check_lowered(moved)


def posted_at_use(lowered: Lowered) -> Lowered:
    """Every receive as late as its channel's order and its own use allow."""
    programs = []
    for program in lowered.programs:
        queues: dict[int, list[Message]] = {}
        for step in program:
            for message in step.receives:
                queues.setdefault(message.source, []).append(message)
        steps = []
        for step in program:
            posted = []
            for message in step.waits:
                queue = queues[message.source]
                while message in queue:
                    posted.append(queue.pop(0))
            steps.append(step._replace(receives=tuple(posted)))
        programs.append(tuple(steps))
    return Lowered(lowered.schedule, tuple(programs))


def test_blocking_sends_deadlock_where_receives_are_posted_late() -> None:
    # 1F1B: one rank sends an activation, the other a gradient, and neither has posted.
    lowered = lower(generate("1f1b", 2, 4), ahead=0)
    check_lowered(lowered)
    with pytest.raises(ScheduleError, match=r"^rank 0, position \d+: F.* is blocked sending"):
        check_lowered(posted_at_use(lowered))


def test_the_blocked_sender_is_named_before_those_who_wait() -> None:
    # Rank 2 sends its first gradient early, while rank 1 still has forwards to send to it.
    schedule = generate("gpipe", 3, 7)
    program = list(schedule.programs[2])
    program[1], program[7] = program[7], program[1]
    lowered = lower(with_program(schedule, 2, program))
    check_lowered(lowered)
    with pytest.raises(ScheduleError, match=r"^rank 0, position 2: F.* is blocked sending"):
        check_lowered(posted_at_use(lowered))


@st.composite
def tables(draw: st.DrawFn) -> Schedule:
    """Any table that can be followed: the items of some schedule in any order their data allows,
    on ranks that need not be neighbours."""
    schedule = draw(schedules())
    stages = sorted(schedule.placement)
    holders = draw(st.permutations([schedule.placement[place] for place in stages]))
    placement = dict(zip(stages, holders))
    todo = {a for _, _, item in schedule.items() for a in actions(item)}
    last = schedule.stages - 1
    programs: list[list[Item]] = [[] for _ in range(schedule.ranks)]
    done: set[tuple] = set()

    def can_run(a: Action) -> bool:
        key = a.flow, a.micro_batch
        if a.kind == "F":
            return a.stage == 0 or ("F", a.stage - 1, *key) in done
        if a.kind == "W":
            return ("B", a.stage, *key) in done
        behind = a.stage == last or ("B", a.stage + 1, *key) in done
        return behind and ("F", a.stage, *key) in done

    random = draw(st.randoms(use_true_random=False))
    while todo:
        ready = sorted((a for a in todo if can_run(a)), key=str)
        a = random.choice(ready)
        todo.remove(a)
        programs[placement[a.flow, a.stage]].append(a)
        done.add((a.kind.replace("I", "B"), a.stage, a.flow, a.micro_batch))
    table = tuple(map(tuple, programs))
    return dataclasses.replace(schedule, placement=placement, programs=table)


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 2))
def test_no_table_that_can_be_followed_deadlocks(table: Schedule, ahead: int) -> None:
    check(table)
    check_lowered(lower(table, ahead))


def test_lower_refuses_half_a_message() -> None:
    schedule = forward_only({(0, 0): 0, (0, 1): 1}, 1)
    with pytest.raises(ScheduleError, match="rank 1 never uses the activation"):
        lower(with_program(schedule, 1, []))
    with pytest.raises(ScheduleError, match="rank 1, position 0 waits for the activation"):
        lower(with_program(schedule, 0, []))


# --- Simulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("hop", "makespan"), [(0.0, 90.85), (0.05, 94.45), (0.1, 98.55)])
def test_a_hop_has_no_slack(hop: float, makespan: float) -> None:
    timeline = simulate(generate("dualpipev", 8, 32), CostModel(pair_factor=0.85, hop=hop))
    assert timeline.makespan == pytest.approx(makespan, abs=1e-9)


def test_a_transfer_begins_when_it_is_sent_and_its_receive_is_posted() -> None:
    # GPipe on two ranks, receives posted only before use: every forward waits one whole hop.
    table = forward_only({(0, 0): 0, (0, 1): 1}, 3)
    costs = CostModel(forward=[1.0, 5.0], hop=2.0)
    assert simulate(posted_at_use(lower(table)), costs).makespan == 1 + 3 * (2 + 5)
    assert simulate(lower(table), costs).makespan == 1 + 2 + 3 * 5


def test_costs_by_stage() -> None:
    schedule = generate("1f1b", 2, 2)
    costs = CostModel(forward=[1, 2], input_grad=[3, 4], weight_grad=[5, 6])
    # By hand: F0 F1 on rank 0, F0 B0 F1 B1 on rank 1, then rank 0's B0 and B1.
    timeline = simulate(schedule, costs)
    assert timeline.makespan == 1 + 2 * (2 + 10) + 8
    assert timeline.idle == (33 - 18, 33 - 24)
    with pytest.raises(ScheduleError, match="costs: forward has 3 numbers for 2 stages"):
        simulate(schedule, CostModel(forward=[1, 2, 3]))


def test_simulation_refuses_a_deadlock() -> None:
    schedule = generate("1f1b", 2, 2)
    program = list(schedule.programs[0])[::-1]
    with pytest.raises(ScheduleError, match=r"^rank \d, position 0: .* waits for ever"):
        simulate(with_program(schedule, 0, program), CostModel())


@QUICK
@given(schedules(), st.floats(0, 0.5))
def test_spans_follow_the_program_and_the_data(schedule: Schedule, hop: float) -> None:
    timeline = simulate(schedule, CostModel(pair_factor=0.85, hop=hop))
    assert [(s.rank, s.item) for s in timeline.spans] == [(r, i) for r, _, i in schedule.items()]
    made = {sent(schedule, a): span.end for span in timeline.spans for a in actions(span.item)}
    previous: dict[int, float] = {}
    for span in timeline.spans:
        assert span.begin >= previous.get(span.rank, 0.0)
        previous[span.rank] = span.end
        for message in inputs(schedule, span.item):
            assert span.begin >= made[message] + hop - 1e-9


# --- Picture and command ------------------------------------------------------------------------


def timeline(name: str = "dualpipe", ranks: int = 4, micro_batches: int = 8) -> Timeline:
    return simulate(generate(name, ranks, micro_batches), CostModel(pair_factor=0.85))


def test_a_picture_is_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save(timeline(), tmp_path / f"{name}.svg", tmp_path / name / "picture.png")
    svg = (tmp_path / "first.svg").read_bytes()
    assert svg == (tmp_path / "second.svg").read_bytes()
    assert b"<svg" in svg and b"#fde3a7" in svg and b"#3d7fb8" in svg
    png = (tmp_path / "first" / "picture.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


@pytest.mark.parametrize("name", GENERATORS)
def test_every_schedule_can_be_drawn(name: str, tmp_path: Path) -> None:
    save(timeline(name, 2, 4), tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 5_000


def command(*arguments: str) -> int:
    return runpy.run_path(str(HERE.parent / "launch" / "simulate.py"))["main"](list(arguments))


def test_command_prints_json_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.json"
    options = ["--ranks", "4", "--micro-batches", "8", "--pair-factor", "0.85"]
    code = command(
        "--schedule", "dualpipev", *options, "--compare", "all", "--json", "--table", str(table)
    )
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(printed) == set(GENERATORS)
    assert printed["dualpipev"]["makespan"] == pytest.approx(24.75)
    assert set(printed["gpipe"]) == {"makespan", "idle_fraction", "idle_by_rank", "peak_in_flight"}
    rows = json.loads(table.read_text())
    assert rows["rank0"][:2] == [["F", 0, 0, 0], ["F", 0, 0, 1]]
    assert ["FB", [0, 0, 7], [0, 7, 3]] in rows["rank0"]
    assert [len(rows[f"rank{r}"]) for r in range(4)] == [
        len(p) for p in generate("dualpipev", 4, 8).programs
    ]


def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command(
            "--ranks",
            "3",
            "--micro-batches",
            "8",
            "--schedule",
            "1f1b",
            "--compare",
            "dualpipe,gpipe",
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "1f1b" in printed.out and "gpipe" in printed.out
    assert "left out: dualpipe needs an even mesh.pipeline" in printed.err


def test_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--ranks", "4", "--micro-batches", "4"],
        ["--ranks", "4", "--micro-batches", "8", "--schedule", "two-pipes"],
        ["--ranks", "4", "--micro-batches", "8", "--compare", "two-pipes"],
        ["--ranks", "4", "--micro-batches", "8", "--table", "/proc/no/table.json"],
    ):
        assert command(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("simulate: ") and printed.err.count("\n") == 1
    for value in ("-1", "inf", "far"):
        with pytest.raises(SystemExit) as refused:
            command("--ranks", "4", "--micro-batches", "8", "--hop", value)
        assert refused.value.code == 2
        message = f"simulate: argument --hop: a cost is a number from 0 up, not {value}\n"
        assert capsys.readouterr().err == message
