"""Schedules for property tests, and what those tests do to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter

from hypothesis import settings
from hypothesis import strategies as st

from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.lower import Lowered, Message, Step
from parallel.schedule.table import Action, Item, Schedule, actions

QUICK = settings(max_examples=150, deadline=None)


@st.composite
def schedules(draw: st.DrawFn, names: tuple[str, ...] = tuple(GENERATORS)) -> Schedule:
    """Any schedule at any small size it supports."""
    name = draw(st.sampled_from(names))
    if name == "dualpipe":
        ranks = 2 * draw(st.integers(1, 4))
        return generate(name, ranks, 2 * draw(st.integers(1, ranks + 6)))
    ranks = draw(st.integers(1, 7))
    if name == "interleaved":
        return generate(name, ranks, ranks * draw(st.integers(1, 4)))
    return generate(name, ranks, draw(st.integers(1, 2 * ranks + 6)))


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


def deadlocks(lowered: Lowered, synchronised: bool) -> bool:
    """Whether ranks get stuck where a send blocks until its receive is posted and, if synchronised,
    where they wait before each item for all that they have posted: as a graph with a circle."""
    posting = {m: ("post", r, p) for r, p, step in _steps(lowered) for m in step.receives}
    graph: dict[tuple, list[tuple]] = {}
    for program in range(len(lowered.programs)):
        before: list[tuple] = []
        for rank, position, step in _steps(lowered):
            if rank != program:
                continue
            post, item = ("post", rank, position), ("item", rank, position)
            awaited = {*step.waits, *(step.receives if synchronised else ())}
            graph[post] = before
            graph[item] = [post, *(("sent", m) for m in awaited)]
            before = [item]
            for m in step.sends:
                graph["sent", m] = [*before, posting[m]]
                before = [("sent", m)]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def needed_too_late(lowered: Lowered) -> list[tuple[int, int, Message]]:
    """Receives (rank, position, message) that are posted before an item of the rank that the
    message's sender needs, through whatever messages: by the latest such item of every rank."""
    sender = {m: (r, p) for r, p, step in _steps(lowered) for m in step.sends}

    @cache
    def needed(rank: int, position: int) -> dict[int, int]:
        """By rank, the last position that (rank, position) needs, itself too."""
        latest = dict(needed(rank, position - 1)) if position else {}
        for m in lowered.programs[rank][position].waits:
            for other, last in needed(*sender[m]).items():
                latest[other] = max(last, latest.get(other, -1))
        return {**latest, rank: position}

    return [
        (rank, position, m)
        for rank, position, step in _steps(lowered)
        for m in step.receives
        if needed(*sender[m]).get(rank, -1) >= position
    ]


def _steps(lowered: Lowered) -> Iterator[tuple[int, int, Step]]:
    for rank, program in enumerate(lowered.programs):
        for position, step in enumerate(program):
            yield rank, position, step


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
