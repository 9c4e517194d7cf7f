"""The check: every broken rule is found and named."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.schedule.check import check
from parallel.schedule.generators import forward_only, generate
from parallel.schedule.table import Action, Overlap, Schedule, ScheduleError, actions
from tests.schedule_strategies import (
    QUICK,
    any_item,
    coordinates,
    followable,
    schedules,
    with_program,
)


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
