"""Timelines as JSON files: a measured step, to be drawn and compared with a simulated one.

    {"name": "dualpipe",
     "schedule": {"rank0": [["F", flow, stage, micro_batch], ...], ...},
     "spans": [[rank, position, start, end], ...]}

schedule: the table, as in a schedule file. spans: one for each item of the table, in any order;
position: of the item in its rank's program. Times count from the start of the step, in seconds
where the run was measured.
"""

from __future__ import annotations

import json
from pathlib import Path

from parallel.files.outputs import write_file
from parallel.files.shown import printable, shown
from parallel.schedule.check import check
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.table import Schedule, ScheduleError
from parallel.schedule.table_file import read_json, table_of_rows, table_text
from parallel.study.costs import MOST
from parallel.study.timeline import Span, Timeline

KEYS = ("name", "schedule", "spans")


def write_timeline(timeline: Timeline, path: Path | str) -> None:
    """Write the table and the spans of `timeline`; optimizer, transfers and costs are left out."""
    spans = ",\n  ".join(
        json.dumps([rank, position, span.start, span.end])
        for rank, program in enumerate(timeline.by_rank)
        for position, span in enumerate(program)
    )
    table = table_text(timeline.schedule.rows()).rstrip().replace("\n", "\n  ")
    write_file(
        path,
        f'{{"name": {json.dumps(timeline.schedule.name)},\n "schedule":\n  {table},\n'
        f' "spans": [\n  {spans}]}}\n',
    )


@collector_paused()
def read_timeline(path: Path | str) -> Timeline:
    """The timeline of a file, its table checked.

    Raises ScheduleError, in one line that names the file, the rank and the position, for anything
    that is not the timeline of one training step.
    """
    where = f"timeline file {path}"
    values = read_json(path, where)
    if not isinstance(values, dict) or not {"schedule", "spans"} <= values.keys() <= {*KEYS}:
        raise ScheduleError(f"{where} must be an object with the keys {', '.join(KEYS)}")
    name, rows = values.get("name", Path(path).stem), values["spans"]
    if not isinstance(name, str) or not isinstance(rows, list):
        raise ScheduleError(f"{where}: name must be a text and spans a list")
    schedule = table_of_rows(values["schedule"], printable(name[:200]), f"{where}, schedule")
    try:
        check(schedule)
    except ScheduleError as error:
        raise ScheduleError(f"{where}, schedule: {error}") from None
    return Timeline(schedule, _spans(rows, schedule, where))


def _spans(rows: list[object], schedule: Schedule, where: str) -> tuple[Span, ...]:
    """The spans, rank after rank in program order."""
    found: dict[tuple[int, int], Span] = {}
    for number, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 4 and all(map(_is_number, row))):
            raise ScheduleError(
                f"{where}, span {number}: must be [rank, position, start, end], not {shown(row)}"
            )
        rank, position, start, end = row
        place = type(rank) is type(position) is int and rank in range(schedule.ranks)
        if not (place and position in range(len(schedule.programs[rank]))):
            raise ScheduleError(f"{where}, rank {rank}, position {position}: not in the schedule")
        if (rank, position) in found:
            raise ScheduleError(f"{where}, rank {rank}, position {position}: has two spans")
        found[rank, position] = Span(rank, schedule.programs[rank][position], start, end)
    spans = []
    before = (-1, 0.0)  # rank, end
    for rank, position, item in schedule.items():
        here = f"{where}, rank {rank}, position {position}: {item}"
        if (rank, position) not in found:
            raise ScheduleError(f"{here} has no span")
        span = found[rank, position]
        earliest = before[1] if before[0] == rank else 0.0
        if not earliest <= span.start <= span.end:
            raise ScheduleError(
                f"{here} runs from {span.start} to {span.end}; it cannot start before {earliest}, "
                "nor end before it starts"
            )
        before = rank, span.end
        spans.append(span)
    return tuple(spans)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST
