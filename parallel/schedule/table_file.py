"""Schedule tables as JSON files: what a search has found, or what is written by hand.

    {"rank0": [["F", flow, stage, micro_batch], ["FB", [flow, stage, micro_batch], [...]], ...],
     "rank1": ...}

An item is a kind (F, B, I or W) with its flow, stage and micro-batch, or an overlapped pair FB with
those of its forward and of its backward. Placement and the number of micro-batches follow from the
rows. Reading proves the form only; `check` proves that the table can be run.

A key "messages" may have what the lowering adds: for every message [kind, flow, stage, micro_batch,
source, destination, sent_after, posted_before, used_by], where the last three are positions in the
programs of the source, the destination and again the destination. The key is for other programs;
reading the file only checks it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from parallel.files.outputs import write_file
from parallel.files.regular import read_text
from parallel.files.shown import printable, shown
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.lower import KINDS, lower
from parallel.schedule.settings import SettingError, require_counts
from parallel.schedule.table import (
    Action,
    Item,
    Overlap,
    Program,
    Schedule,
    ScheduleError,
    actions,
    at,
)

MOST_BYTES = 2**28  # the largest table or timeline takes less than half of it
MESSAGES = "messages"


def write_table(schedule: Schedule, path: Path | str, lowered: bool = False) -> None:
    """Write a training schedule as a file that `read_table` gives back, one line per rank.

    lowered: with its messages.
    """
    write_file(path, table_text(schedule.rows(), _message_rows(schedule) if lowered else None))


@collector_paused()
def read_table(path: Path | str) -> Schedule:
    """The training schedule of a file, named after the file without its suffix.

    Raises ScheduleError, in one line that names the file, the rank and the position in its program,
    for anything that is not such a table.
    """
    where = f"schedule file {path}"
    rows = read_json(path, where)
    messages = rows.pop(MESSAGES, None) if isinstance(rows, dict) else None
    schedule = table_of_rows(rows, printable(Path(path).stem), where)
    if messages is not None and messages != _message_rows(schedule):
        raise ScheduleError(
            f'{where}: its "{MESSAGES}" are not those that its items need: leave them out, since '
            "they follow from the items"
        )
    return schedule


def _message_rows(schedule: Schedule) -> list[list[object]]:
    """Every message, rank by rank in the order sent, with the positions of the item it is sent
    after, the item its receive is posted before, and the item that uses it."""
    programs = lower(schedule).programs
    steps = [(position, step) for program in programs for position, step in enumerate(program)]
    posted = {message: position for position, step in steps for message in step.receives}
    used = {message: position for position, step in steps for message in step.waits}
    return [
        [*message, position, posted[message], used[message]]
        for position, step in steps
        for message in step.sends
    ]


def table_text(
    rows: dict[str, list[list[object]]], messages: list[list[object]] | None = None
) -> str:
    """`rows` as JSON, one line per rank, and one line per message."""
    lines = [f"{json.dumps(rank)}: {json.dumps(program)}" for rank, program in rows.items()]
    if messages is not None:
        each = ",\n  ".join(json.dumps(message) for message in messages)
        lines.append(f'"{MESSAGES}": [\n  {each}]')
    return "{" + ",\n ".join(lines) + "}\n"


def read_json(path: Path | str, where: str) -> Any:
    """What a JSON file says. Raises ScheduleError in one line that starts with `where`."""
    text = read_text(path, MOST_BYTES, ScheduleError, where)
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ScheduleError(f"{where} is not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ScheduleError(f"{where} is not JSON: {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} is there more than once")
    return keys


def table_of_rows(rows: object, name: str, where: str) -> Schedule:
    """The schedule of rows as `Schedule.rows` makes them; errors start with `where`."""
    if not isinstance(rows, dict) or not rows:
        raise ScheduleError(f'{where} must be {{"rank0": [...], "rank1": [...], ...}}')
    programs: list[Program] = []
    for rank in range(len(rows)):
        if f"rank{rank}" not in rows:
            raise ScheduleError(f"{where} has {len(rows)} keys, but no rank{rank}")
        program = rows[f"rank{rank}"]
        if not isinstance(program, list) or not program:
            raise ScheduleError(f"{where}, rank {rank}: must be a list with at least one item")
        programs.append(
            tuple(
                _item(row, f"{where}, rank {rank}, position {position}")
                for position, row in enumerate(program)
            )
        )
    placement = _placement(programs, where)
    flows = {flow for flow, _ in placement}
    if flows != set(range(len(flows))):
        raise ScheduleError(f"{where} has flows {shown(sorted(flows))}: they count from 0")
    last = max(a.micro_batch for p in programs for item in p for a in actions(item))
    micro_batches = (1 + last) * len(flows)
    try:
        require_counts(where, len(programs), micro_batches)
    except SettingError as error:
        raise ScheduleError(f"{where}: {error}") from None
    return Schedule(name, len(programs), micro_batches, placement, tuple(programs))


def _item(row: object, here: str) -> Item:
    if isinstance(row, list):
        if len(row) == 3 and row[0] == "FB" and _is_place(row[1]) and _is_place(row[2]):
            return Overlap(Action("F", *row[1]), Action("B", *row[2]))
        if row and _is_place(row[1:]):
            for kind in KINDS:
                if row[0] == kind:
                    return Action(kind, *row[1:])
    raise ScheduleError(
        f"{here}: {shown(row)} is neither [kind, flow, stage, micro-batch] of a kind "
        f'{", ".join(KINDS)} nor ["FB", [flow, stage, micro-batch], [flow, stage, micro-batch]], '
        "with whole numbers from 0 up"
    )


def _is_place(numbers: object) -> bool:
    """Whether these are the flow, stage and micro-batch of an action."""
    return (
        isinstance(numbers, list)
        and len(numbers) == 3
        and all(type(number) is int and 0 <= number < 2**31 for number in numbers)
    )


def _placement(programs: list[Program], where: str) -> dict[tuple[int, int], int]:
    """(flow, stage) -> the rank whose program has it."""
    placement: dict[tuple[int, int], int] = {}
    for rank, program in enumerate(programs):
        for position, item in enumerate(program):
            for action in actions(item):
                holder = placement.setdefault((action.flow, action.stage), rank)
                if holder != rank:
                    raise ScheduleError(
                        f"{where}, {at(rank, position, action)} has a stage that is also on rank "
                        f"{holder}"
                    )
    return placement
