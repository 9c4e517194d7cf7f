"""The requested tables, simulated: by name, from a file, as measured, or searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from parallel.files.shown import printable
from parallel.schedule.check import check
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.settings import Setting, SettingError
from parallel.schedule.table import Schedule, ScheduleError
from parallel.schedule.table_file import read_table
from parallel.study.costs import CostModel
from parallel.study.search import SEARCHED, Found, Progress, search
from parallel.study.simulate import simulate
from parallel.study.timeline import Timeline

NAMES = (*GENERATORS, SEARCHED)
DEFAULT = "dualpipe"


@dataclass(frozen=True)
class SearchSettings:
    """How to search for the table called `searched`; see `search`.

    placement: of the schedule with this name.
    """

    placement: str = "dualpipev"
    memory_cap: float | None = None
    seconds: float = 20.0
    moves: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """What to simulate.

    costs: of all. search: for the table called `searched`. progress: called during the search.
    name: of NAMES; without it, the table of the file, or else of the measured step, or else
    DEFAULT. file: has a table. measured: a step to set beside it.
    ranks, micro_batches: None where a file or a measured step has them. others: of NAMES, to
    compare with.
    """

    costs: CostModel
    search: SearchSettings = SearchSettings()
    progress: Callable[[Progress], None] | None = None
    name: str | None = None
    file: Path | None = None
    measured: Timeline | None = None
    ranks: int | None = None
    micro_batches: int | None = None
    others: Sequence[str] = ()


@dataclass
class Simulated:
    """What has been simulated.

    timelines: by name, the one asked for first. left_out: others that could not be simulated, and
    why.
    found: what a search has found, if there was one.
    """

    timelines: dict[str, Timeline] = field(default_factory=dict)
    left_out: dict[str, ScheduleError] = field(default_factory=dict)
    found: Found | None = None


def simulate_requested(request: Request) -> Simulated:
    """Make, check and simulate what is requested.

    Raises ScheduleError, a SettingError where the name or the numbers are at fault, if the first
    table cannot be made or simulated.
    """
    simulated = Simulated()

    def made(name: str, ranks: int, micro_batches: int) -> Schedule:
        if name != SEARCHED:
            return generate(name, ranks, micro_batches)
        how = request.search
        placement = generate(how.placement, ranks, micro_batches).placement
        simulated.found = search(
            request.costs, placement, micro_batches, memory_cap=how.memory_cap,
            seconds=how.seconds, moves=how.moves, seed=how.seed, progress=request.progress,
        )  # fmt: skip
        return simulated.found.schedule

    def run(table: Schedule) -> Timeline:
        return simulate(check(table).lowered, request.costs)

    table = _given(request)
    ranks = table.ranks if table else request.ranks
    micro_batches = table.micro_batches if table else request.micro_batches
    if ranks is None or micro_batches is None:
        needed = " are needed, or a file that has a table"
        raise SettingError(Setting.RANKS, " and ", Setting.MICRO_BATCHES, needed)
    if request.name or not table:
        table = made(request.name or DEFAULT, ranks, micro_batches)
    simulated.timelines[table.name] = run(table)
    for name in request.others:
        if name in simulated.timelines or name in simulated.left_out:
            continue
        try:
            simulated.timelines[name] = run(made(name, ranks, micro_batches))
        except ScheduleError as error:
            simulated.left_out[name] = error
    return simulated


def _given(request: Request) -> Schedule | None:
    """The table of the file, or of the measured step."""
    measured = request.measured.schedule if request.measured else None
    if not request.file:
        return measured
    table = read_table(request.file)
    try:
        check(table)
    except ScheduleError as error:
        raise ScheduleError(f"schedule file {request.file}: {error}") from None
    if measured and (measured.ranks, measured.micro_batches) != (table.ranks, table.micro_batches):
        raise ScheduleError(
            f"schedule file {request.file} has {table.ranks} ranks and {table.micro_batches} "
            f"micro-batches, but the measured step has {measured.ranks} and "
            f"{measured.micro_batches}"
        )
    if table.name in NAMES:  # which need not be the one that this name generates
        table = replace(table, name=printable(request.file.name))
    return table
