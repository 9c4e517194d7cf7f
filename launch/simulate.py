"""Simulate a pipeline schedule, compare schedules, draw their timelines.

The schedule table is checked, lowered and run under the given costs; nothing is trained and no
process is started.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from parallel.schedule.check import check
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.table import Schedule, ScheduleError
from parallel.schedule.table_file import read_table, write_table
from parallel.study.costs import CostModel, read_costs
from parallel.study.simulate import Timeline, simulate
from parallel.study.timeline_file import read_timeline
from parallel.study.timeline_table import critical_path_line, summary, table
from parallel.study.trace import write_trace
from trainer.io.command_parser import CommandParser

EXAMPLES = """\
examples:
  python launch/simulate.py --schedule dualpipe --ranks 8 --micro-batches 20 --pair-factor 0.85
  python launch/simulate.py --ranks 8 --micro-batches 32 --costs costs.yaml --compare all --json
  python launch/simulate.py --schedule dualpipe --ranks 8 --micro-batches 20 --pair-factor 0.85 \\
      --svg docs/images/dualpipe.svg --png docs/images/dualpipe.png
  python launch/simulate.py --schedule searched --ranks 4 --micro-batches 8 --pair-factor 0.85 \\
      --table found.json
  python launch/simulate.py --schedule-file found.json --hop 0.05 --trace found_trace.json

Costs are in any one unit. Those of F, I and W are for a full stage, one P-th of the model for P
ranks; DualPipeV's stages are half as large and cost half. Peaks are in full-stage activations.
--json prints {schedule: {makespan, idle_fraction, idle_by_rank, peak_in_flight}}, where
idle_by_rank is in the unit of the costs and idle_fraction is of the time of all ranks.
"""
COSTS = {
    "forward": "cost of F, a full stage (1)",
    "input_grad": "cost of I, a full stage (1)",
    "weight_grad": "cost of W, a full stage (1)",
    "pair_factor": "cost of an overlapped pair over the sum of its parts (1)",
    "hop": "cost of a message from rank to rank, sent while both compute (0)",
}
SEARCHED = "searched"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        costs = _costs(options)
        measured = None
        if options.measured:
            measured = dataclasses.replace(read_timeline(options.measured), costs=costs)
        timelines, refusals = _simulate_all(options, costs, measured)
        timeline = next(iter(timelines.values()))
        _write_files(timeline, measured, options)
        if measured:
            timelines[f"{measured.schedule.name}, measured"] = measured
        if options.json:
            print(json.dumps({name: summary(timelines[name]) for name in timelines}, indent=2))
        else:
            _print(timelines, [timeline, measured] if measured else [timeline])
    except (ScheduleError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    for refusal in refusals:
        print(f"simulate: left out: {refusal}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("simulate", __doc__, EXAMPLES)
    which = parser.add_mutually_exclusive_group()
    names = ", ".join([*GENERATORS, SEARCHED])
    which.add_argument("--schedule", metavar="NAME", help=f"{names} (dualpipe)")
    which.add_argument("--schedule-file", type=Path, metavar="FILE", help="a table, as of --table")
    add = parser.add_argument
    add("--ranks", type=int, metavar="P", help="pipeline ranks")
    add("--micro-batches", type=int, metavar="M", help="of all flows together")
    add("--costs", type=Path, metavar="FILE", help="costs as YAML; the options below go before it")
    for key, text in COSTS.items():
        metavar = "K" if key == "pair_factor" else "T"
        add(f"--{key.replace('_', '-')}", type=_number, metavar=metavar, help=text)
    add("--compare", metavar="NAMES", help="also simulate these: all, or names with commas between")
    add("--measured", type=Path, metavar="FILE", help="a measured timeline, to set beside it")
    add("--svg", type=_picture, metavar="FILE.svg", help="draw the timeline of --schedule")
    add("--png", type=_picture, metavar="FILE.png", help="draw the timeline of --schedule")
    add("--transfers", action="store_true", help="draw the transfers too")
    add("--trace", type=Path, metavar="FILE", help="write a trace for Perfetto or chrome://tracing")
    add("--table", type=Path, metavar="FILE", help="write the table of --schedule as JSON")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add_search = parser.add_argument_group(f"--schedule {SEARCHED}").add_argument
    add_search("--search-seconds", type=_number, default=20.0, metavar="S", help="how long (20)")
    add_search("--search-moves", type=int, metavar="N", help="so many moves instead, repeatable")
    add_search("--memory-cap", type=_number, metavar="A", help="activations a rank holds (P + 1/2)")
    add_search("--seed", type=int, default=0, metavar="N", help="of the random moves (0)")
    return parser


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a cost is a number from 0 up, not {text}")
    return value


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"a picture is called .svg or .png, not {text}")
    return Path(text)


def _costs(options: argparse.Namespace) -> CostModel:
    """The costs of the file, if any, with those of the command line in their place."""
    costs = read_costs(options.costs) if options.costs else CostModel()
    given = {key: getattr(options, key) for key in COSTS if getattr(options, key) is not None}
    return dataclasses.replace(costs, **given)


def _simulate_all(
    options: argparse.Namespace, costs: CostModel, measured: Timeline | None
) -> tuple[dict[str, Timeline], list[str]]:
    """Timelines by name, the one asked for first, and why others could not be; the first must."""
    first = _first(options, costs, measured)
    timelines = {first.name: simulate(check(first).lowered, costs)}
    refusals: list[str] = []
    for name in _names(options.compare):
        if name in timelines:
            continue
        try:
            schedule = _schedule(name, first.ranks, first.micro_batches, costs, options)
            timelines[name] = simulate(check(schedule).lowered, costs)
        except ScheduleError as error:
            if name not in (*GENERATORS, SEARCHED):
                raise
            text = str(error)
            refusals.append(text if text.startswith(name) else f"{name}: {text}")
    return timelines, refusals


def _names(compare: str | None) -> list[str]:
    """The schedules to compare with."""
    names = compare.split(",") if compare else []
    return [each for name in names for each in (GENERATORS if name == "all" else [name])]


def _first(options: argparse.Namespace, costs: CostModel, measured: Timeline | None) -> Schedule:
    """The schedule asked for: of a file, by its name, or as it was measured."""
    table = measured.schedule if measured else None
    if options.schedule_file:
        table = read_table(options.schedule_file)
        if table.name in GENERATORS:  # which need not be the one that this name generates
            table = dataclasses.replace(table, name=options.schedule_file.name)
    ranks, micro_batches = options.ranks, options.micro_batches
    if table:
        ranks = table.ranks if ranks is None else ranks
        micro_batches = table.micro_batches if micro_batches is None else micro_batches
        if (ranks, micro_batches) != (table.ranks, table.micro_batches):
            raise ScheduleError(
                f"{ranks} ranks and {micro_batches} micro-batches are asked for, but the table of "
                f"{table.name} has {table.ranks} and {table.micro_batches}"
            )
        if not options.schedule:
            return table
    if ranks is None or micro_batches is None:
        raise ScheduleError("--ranks and --micro-batches are needed, or a file that has a table")
    return _schedule(options.schedule or "dualpipe", ranks, micro_batches, costs, options)


def _schedule(
    name: str, ranks: int, micro_batches: int, costs: CostModel, options: argparse.Namespace
) -> Schedule:
    """The schedule of this name; the search for `searched` says on stderr how far it is."""
    if name != SEARCHED:
        return generate(name, ranks, micro_batches)
    from parallel.study.search import search  # only here: no other schedule needs it

    found = search(
        costs,
        ranks,
        micro_batches,
        memory_cap=options.memory_cap,
        seconds=options.search_seconds,
        moves=options.search_moves,
        seed=options.seed,
        progress=_show_progress,
    )
    print(
        f"search: {found.makespan:.6g} after {found.moves} moves in {found.seconds:.1f} s, from "
        f"{found.start} with {found.start_makespan:.6g}; bound {found.lower_bound:.6g}",
        file=sys.stderr,
    )
    return dataclasses.replace(found.schedule, name=SEARCHED)


def _show_progress(news: Any) -> None:
    text = f"search: best {news.best:.6g}, bound {news.lower_bound:.6g}, {news.moves} moves, "
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text}{news.seconds_left:.0f} s left  ", file=sys.stderr, end=end)


def _write_files(
    timeline: Timeline, measured: Timeline | None, options: argparse.Namespace
) -> None:
    pictures = [path for path in (options.svg, options.png) if path]
    if pictures:
        from parallel.study.draw import save  # only here: matplotlib takes its time to load

        save(timeline, *pictures, measured=measured, transfers=options.transfers)
    if options.trace:
        runs = {"simulated": timeline}
        write_trace(runs | {"measured": measured} if measured else runs, options.trace)
    if options.table:
        write_table(timeline.schedule, options.table)


@collector_paused()
def _print(timelines: dict[str, Timeline], explained: list[Timeline]) -> None:
    first, console = explained[0].schedule, Console(width=None if sys.stdout.isatty() else 100)
    console.print(f"{first.ranks} ranks, {first.micro_batches} micro-batches")
    console.print(table(timelines))
    for timeline in explained:
        console.print(critical_path_line(timeline), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
