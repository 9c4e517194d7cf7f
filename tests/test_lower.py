"""The lowering: messages match, and no table that can be followed deadlocks."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.schedule.check import check
from parallel.schedule.check_messages import check_lowered
from parallel.schedule.generators import GENERATORS, forward_only, generate
from parallel.schedule.lower import Lowered, inputs, lower, received, sent
from parallel.schedule.table import Action, Item, Overlap, Schedule, ScheduleError, actions
from tests.schedule_strategies import (
    QUICK,
    deadlocks,
    needed_too_late,
    posted_at_use,
    schedules,
    with_program,
)


@QUICK
@given(schedules())
def test_sends_and_receives_match_one_to_one_and_in_order(schedule: Schedule) -> None:
    lowered = lower(schedule)
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
            assert set(inputs(schedule, step.item)) <= set(posted)
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
    extra = lowered.programs[0][position].receives * 2
    with pytest.raises(ScheduleError, match=r"^rank 0, position 7: B.* which is never sent"):
        check_lowered(with_step(lowered, 0, 7, receives=extra))


def test_check_catches_a_receive_posted_after_its_use() -> None:
    # Evaluation on two ranks: the only receive moved to after the item that needs it.
    lowered = lower(forward_only({(0, 0): 0, (0, 1): 1}, 2))
    late = lowered.programs[1][0].receives
    moved = with_step(with_step(lowered, 1, 0, receives=()), 1, 1, receives=late)
    expected = r"^rank 0, position 0: F.* is blocked sending .* whose receive is not posted"
    with pytest.raises(ScheduleError, match=expected):
        check_lowered(moved)


def test_blocking_sends_deadlock_where_receives_are_posted_late() -> None:
    # 1F1B: one rank sends an activation, the other a gradient, and neither has posted.
    lowered = lower(generate("1f1b", 2, 4))
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
        ready = a.stage == last or ("B", a.stage + 1, *key) in done
        return ready and ("F", a.stage, *key) in done

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
@given(tables())
def test_no_table_that_can_be_followed_deadlocks(table: Schedule) -> None:
    lowered = check(table).lowered
    assert not deadlocks(lowered, synchronised=True)
    assert not needed_too_late(lowered)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_no_receive_is_posted_too_early_at_full_size(name: str) -> None:
    assert not needed_too_late(check(generate(name, 16, 64)).lowered)


@QUICK
@given(tables() | schedules(), st.data())
def test_check_catches_just_the_receives_that_are_posted_too_early(
    table: Schedule, data: st.DataObject
) -> None:
    """Some receives moved to any earlier place that the order on their channel allows."""
    lowered = lower(table)
    for _ in range(data.draw(st.integers(1, 3))):
        lowered = with_an_earlier_receive(lowered, data)
    if not deadlocks(lowered, synchronised=True):
        check_lowered(lowered)
        return
    assert not deadlocks(lowered, synchronised=False)
    place = r"^rank (\d+), position (\d+): .* comes after the receive of the .* is posted, but has"
    with pytest.raises(ScheduleError, match=place) as caught:
        check_lowered(lowered)
    rank, position = map(int, re.match(place, str(caught.value)).groups())
    assert any(str(m) in str(caught.value) for m in lowered.programs[rank][position].receives)


def with_an_earlier_receive(lowered: Lowered, data: st.DataObject) -> Lowered:
    """The same, with a receive posted earlier, but after those that come before on its channel."""
    places = [
        (rank, position, m)
        for rank, program in enumerate(lowered.programs)
        for position, step in enumerate(program)
        for m in step.receives
        if position and m is next(n for n in step.receives if n.source == m.source)
    ]
    if not places:
        return lowered
    rank, position, message = data.draw(st.sampled_from(places))
    program = lowered.programs[rank]
    before = [
        p for p in range(position) if any(m.source == message.source for m in program[p].receives)
    ]
    to = data.draw(st.integers(max(before, default=0), position - 1))
    rest = tuple(m for m in program[position].receives if m is not message)
    lowered = with_step(lowered, rank, position, receives=rest)
    return with_step(lowered, rank, to, receives=(*lowered.programs[rank][to].receives, message))


def test_a_receive_that_is_posted_too_early_is_named() -> None:
    # 1F1B's rank 0 uses the first gradient in item 2; the first forward, item 0, makes it possible.
    lowered = lower(generate("1f1b", 2, 4))
    (message,) = lowered.programs[0][2].receives
    early = with_step(with_step(lowered, 0, 2, receives=()), 0, 0, receives=(message,))
    assert needed_too_late(early) == [(0, 0, message)]
    with pytest.raises(ScheduleError) as caught:
        check_lowered(early)
    assert str(caught.value) == (
        "rank 0, position 0: F(flow 0, stage 0, micro-batch 0) comes after the receive of the "
        "gradient(flow 0, stage 0, micro-batch 0, rank 1 -> rank 0) is posted, but has to run "
        "before that is sent: post the receive after it"
    )


def test_two_ranks_that_wait_for_what_they_have_posted_are_caught() -> None:
    # Two flows in opposite directions: neither rank needs the other before it sends.
    table = Schedule(
        name="opposite",
        ranks=2,
        micro_batches=2,
        placement={(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 0},
        programs=(
            (Action("F", 0, 0, 0), Action("F", 1, 1, 0)),
            (Action("F", 1, 0, 0), Action("F", 0, 1, 0)),
        ),
        training=False,
    )
    lowered = check(table).lowered
    assert lowered.programs[1][0].receives
    (message,) = lowered.programs[0][1].receives
    lowered = with_step(with_step(lowered, 0, 1, receives=()), 0, 0, receives=(message,))
    assert not needed_too_late(lowered)
    with pytest.raises(ScheduleError, match=r"^rank 0, position 0: .* comes after the receive"):
        check_lowered(lowered)


def test_lower_refuses_half_a_message() -> None:
    schedule = forward_only({(0, 0): 0, (0, 1): 1}, 1)
    with pytest.raises(ScheduleError, match="rank 1 never uses the activation"):
        lower(with_program(schedule, 1, []))
    with pytest.raises(ScheduleError, match="rank 1, position 0 waits for the activation"):
        lower(with_program(schedule, 0, []))
