"""A timeline in the trace event format, which chrome://tracing and Perfetto (ui.perfetto.dev) open.

A run is a process, its ranks are threads, its items slices; an arrow leads from the item that makes
a message to the one that waits for it; a counter for each rank says how many activations it holds.
Times are in microseconds there, so one unit of the costs is shown as a second.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from parallel.files.outputs import write_file
from parallel.schedule.lower import inputs, outputs
from parallel.schedule.table import Item, Overlap, actions
from parallel.study.costs import CostModel
from parallel.study.timeline import Span, Timeline, Transfer

MICROSECONDS = 1e6
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}

Event: TypeAlias = dict[str, Any]


class Journey(NamedTuple):
    """A message: who makes it, who waits for it, and its transfer, of no length if not known."""

    transfer: Transfer
    maker: Span
    user: Span


def journeys(timeline: Timeline) -> Iterator[Journey]:
    """Every message of `timeline`, in the order of the items that wait for them."""
    schedule = timeline.schedule
    makers = {m: span for span in timeline.spans for m in outputs(schedule, span.item)}
    known = {transfer.message: transfer for transfer in timeline.transfers}
    for user in timeline.spans:
        for message in inputs(schedule, user.item):
            maker = makers[message]
            transfer = known.get(message, Transfer(message, maker.end, maker.end))
            yield Journey(transfer, maker, user)


def write_trace(timelines: Mapping[str, Timeline], path: Path | str) -> None:
    """Write timelines, by the name of their process, as one trace."""
    arrows = count()
    events = [
        event
        for process, (name, timeline) in enumerate(timelines.items())
        for event in _events(timeline, process, name, arrows)
    ]
    lines = ",\n".join(json.dumps(event) for event in events)
    write_file(path, f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n')


def _events(timeline: Timeline, process: int, name: str, arrows: Iterator[int]) -> Iterator[Event]:
    yield _metadata("process_name", process, 0, name=name)
    yield _metadata("process_sort_index", process, 0, sort_index=process)
    for rank in range(timeline.schedule.ranks):
        yield _metadata("thread_name", process, rank, name=f"rank {rank}")
        yield _metadata("thread_sort_index", process, rank, sort_index=rank)
    for span in timeline.spans:
        yield _slice(process, span.rank, span.start, span.end, **_description(span.item))
    for rank, (start, end) in enumerate(timeline.optimizer):
        yield _slice(process, rank, start, end, name="optimizer", cat="optimizer", args={})
    for journey in journeys(timeline):
        yield from _arrow(process, next(arrows), journey)
    in_full_stages = dataclasses.replace(timeline, costs=CostModel())
    for rank, steps in enumerate(in_full_stages.memory):
        for time, held in steps:
            yield {
                "ph": "C",
                "name": f"activations in flight, rank {rank}",
                "pid": process,
                "ts": time * MICROSECONDS,
                "args": {"full stages": held},
            }


def _metadata(what: str, process: int, thread: int, **values: object) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "ts": 0, "args": values}


def _slice(process: int, thread: int, start: float, end: float, **values: object) -> Event:
    times = {"ts": start * MICROSECONDS, "dur": (end - start) * MICROSECONDS}
    return {"ph": "X", "pid": process, "tid": thread, **times, **values}


def _description(item: Item) -> Event:
    """Name, category and arguments of an item's slice."""
    names = [f"{action.kind} {action.micro_batch}" for action in actions(item)]
    category = "pair" if isinstance(item, Overlap) else NAMES[item.kind]
    args = {
        NAMES[a.kind]: {"flow": a.flow, "stage": a.stage, "micro_batch": a.micro_batch}
        for a in actions(item)
    }
    return {"name": " & ".join(names), "cat": category, "args": args}


def _arrow(process: int, number: int, journey: Journey) -> Iterator[Event]:
    """From within the slice that makes the message to the start of the one that waits for it."""
    transfer, maker, user = journey
    message = transfer.message
    event = {"name": message.kind, "cat": "transfer", "pid": process, "id": number}
    times = {"begin": transfer.start, "end": transfer.end}
    # A hair before the end: at the end itself an arrow would leave the next slice.
    sent = maker.end - 1e-3 * (maker.end - maker.start)
    yield {**event, "ph": "s", "tid": maker.rank, "ts": sent * MICROSECONDS, "args": times}
    yield {**event, "ph": "f", "bp": "e", "tid": user.rank, "ts": user.start * MICROSECONDS}
