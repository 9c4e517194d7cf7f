"""Simulate a pipeline schedule, compare schedules, draw their timelines, search for a better one.

The schedule table is checked, lowered and run under the given costs; nothing is trained and no
process is started.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.run.exit import guarded

# All else is imported by the functions that need it, so that Ctrl-C ends in one line at any time.
if TYPE_CHECKING:
    from parallel.study.costs import CostModel
    from parallel.study.requested import Request, Simulated
    from parallel.study.timeline import Timeline
    from trainer.io.command_parser import CommandParser

EXAMPLES = """\
examples:
  python launch/simulate.py --schedule dualpipe --ranks 8 --micro-batches 20 --pair-factor 0.85
  python launch/simulate.py --ranks 8 --micro-batches 32 --costs costs.yaml --compare all --json
  python launch/simulate.py --schedule dualpipe --ranks 8 --micro-batches 20 --pair-factor 0.85 \\
      --svg dualpipe.svg --png dualpipe.png
  python launch/simulate.py --schedule-file found.json --hop 0.05 --trace found_trace.json

Search for a table, and train with it (docs/schedules.md has more):
  python launch/simulate.py --schedule searched --ranks 2 --micro-batches 4 --pair-factor 0.85 \\
      --table found.json
  python launch/train.py --config configs/cpu_4proc.yaml --pipeline.schedule_file found.json

Costs are in any one unit. Those of F, I and W are for a full stage, one P-th of the model for P
ranks; DualPipeV's stages are half as large and cost half. Peaks are in full-stage activations.
--json prints {schedule: {makespan, idle_fraction, idle_by_rank, peak_in_flight}}, where
idle_by_rank is in the unit of the costs and idle_fraction is of the time of all ranks.
Exit code: 0; 2 for what cannot be simulated; 1 where a file cannot be written to its end; 130 after
Ctrl-C, which ends a search with the best table so far.
"""
COSTS = {
    "forward": "cost of F, a full stage (1)",
    "input_grad": "cost of I, a full stage (1)",
    "weight_grad": "cost of W, a full stage (1)",
    "pair_factor": "cost of an overlapped pair over the sum of its parts (1)",
    "hop": "latency of a message, in transit while both ranks compute (0)",
}
INPUTS = ("costs", "schedule_file", "measured")
OUTPUTS = ("svg", "png", "trace", "table")
SEARCHING = ("--placement", "--search-seconds", "--search-moves", "--memory-cap", "--seed")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded("simulate", lambda: _simulate(arguments))


def _simulate(arguments: list[str] | None) -> int:
    from parallel.schedule.settings import Setting, SettingError
    from parallel.schedule.table import ScheduleError
    from parallel.study.requested import simulate_requested

    options = _parse(arguments)
    names = {
        Setting.SCHEDULE: "--schedule",
        Setting.RANKS: "--ranks",
        Setting.MICRO_BATCHES: "--micro-batches",
    }
    request = _request(options)
    try:
        simulated = simulate_requested(request)
    except SettingError as error:
        raise ScheduleError(error.worded(names)) from None
    try:
        _write_files(next(iter(simulated.timelines.values())), request.measured, options)
    finally:  # a full disk does not take what has been found
        _print(simulated, request.measured, options.json)
    for name, reason in simulated.left_out.items():
        text = reason.worded(names) if isinstance(reason, SettingError) else str(reason)
        print(f"simulate: left out: {name}: {text.removeprefix(name + ' ')}", file=sys.stderr)
    if simulated.found and simulated.found.stopped:
        print("simulate: Ctrl-C ended the search; this is its best table so far", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    from parallel.study.search import SEARCHED

    parser = _parser()
    options = parser.parse_args(arguments)
    if options.schedule != SEARCHED and SEARCHED not in (options.compare or ()):
        parser.refuse(options, SEARCHING, f"without --schedule {SEARCHED}")
    if options.search_moves is not None:
        parser.refuse(options, ["--search-seconds"], "with --search-moves")
    for table in ("schedule_file", "measured"):
        if getattr(options, table):
            has_them = f"with --{table.replace('_', '-')}, whose table has its own size"
            parser.refuse(options, ["--ranks", "--micro-batches"], has_them)
    if not (options.svg or options.png):
        parser.refuse(options, ["--transfers"], "without --svg or --png")
    if not options.table:
        parser.refuse(options, ["--lowered"], "without --table")
    return options


def _parser() -> CommandParser:
    from parallel.schedule.generators import GENERATORS
    from parallel.study.costs import MOST
    from parallel.study.requested import DEFAULT, NAMES
    from trainer.io import option_types as types
    from trainer.io.command_parser import CommandParser

    parser = CommandParser("simulate", __doc__, EXAMPLES)
    cost, count = types.number(0, MOST), types.whole_number(1)
    which = parser.add_mutually_exclusive_group()
    name, names = types.name_of("schedule", NAMES), f"{', '.join(NAMES)} ({DEFAULT})"
    which.add_argument("--schedule", type=name, metavar="NAME", help=names)
    which.add_argument(
        "--schedule-file", type=Path, metavar="FILE", help="a table, as --table writes it"
    )
    add = parser.add_argument
    add("--ranks", type=count, metavar="P", help="pipeline ranks")
    add("--micro-batches", type=count, metavar="M", help="in all flows together")
    add("--costs", type=Path, metavar="FILE", help="costs as YAML; the options below override it")
    for key, text in COSTS.items():
        metavar = "K" if key == "pair_factor" else "T"
        add(f"--{key.replace('_', '-')}", type=cost, metavar=metavar, help=text)
    compared = types.names_of("schedule", NAMES, {"all": list(GENERATORS)})
    compare = "also simulate these: all, or names separated by commas"
    add("--compare", type=compared, metavar="NAMES", help=compare)
    add("--measured", type=Path, metavar="FILE", help="a measured step, to compare with")
    svg, png = types.file_ending_in(".svg"), types.file_ending_in(".png")
    add("--svg", type=svg, metavar="FILE.svg", help="draw the timeline of --schedule")
    add("--png", type=png, metavar="FILE.png", help="draw the timeline of --schedule")
    add("--transfers", action="store_true", help="draw the transfers too")
    add("--trace", type=Path, metavar="FILE", help="write a trace for Perfetto or chrome://tracing")
    add("--table", type=Path, metavar="FILE", help="write the table of --schedule as JSON")
    lowered = "write its messages too: where each is sent, its receive posted, and used"
    add("--lowered", action="store_true", help=lowered)
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add_search = parser.add_argument_group("--schedule searched").add_argument
    where = "where the stages are: as in this schedule (dualpipev)"
    add_search(
        "--placement", type=types.name_of("schedule", GENERATORS), metavar="NAME", help=where
    )
    seconds = types.number(0)
    add_search("--search-seconds", type=seconds, metavar="S", help="how long to search (20)")
    moves = "stop after this many moves instead, which always gives the same table"
    add_search("--search-moves", type=types.whole_number(0), metavar="N", help=moves)
    cap, memory = (
        "activations that a rank holds at most (P + 1/2; P + 1 in two flows)",
        types.number(0, MOST),
    )
    add_search("--memory-cap", type=memory, metavar="A", help=cap)
    add_search(
        "--seed", type=types.whole_number(0), metavar="N", help="seed of the random moves (0)"
    )
    return parser


def _costs(options: argparse.Namespace) -> CostModel:
    """The costs of the file, if any, with those of the command line in their place."""
    from parallel.study.costs import CostModel, read_costs

    costs = read_costs(options.costs) if options.costs else CostModel()
    given = {key: getattr(options, key) for key in COSTS if getattr(options, key) is not None}
    return dataclasses.replace(costs, **given)


def _request(options: argparse.Namespace) -> Request:
    from parallel.files.outputs import require_outputs
    from parallel.study.requested import Request, SearchSettings
    from parallel.study.timeline_file import read_timeline
    from trainer.io.search_progress import show_search

    costs = _costs(options)
    measured = read_timeline(options.measured) if options.measured else None
    files = {f"--{key.replace('_', '-')}": getattr(options, key) for key in (*INPUTS, *OUTPUTS)}
    given = {option: path for option, path in files.items() if path}
    require_outputs(given, [f"--{key}" for key in OUTPUTS])
    return Request(
        costs=costs,
        name=options.schedule,
        file=options.schedule_file,
        measured=measured and dataclasses.replace(measured, costs=costs),
        ranks=options.ranks,
        micro_batches=options.micro_batches,
        others=options.compare or (),
        search=SearchSettings(
            placement=options.placement or "dualpipev",
            memory_cap=options.memory_cap,
            seconds=20.0 if options.search_seconds is None else options.search_seconds,
            moves=options.search_moves,
            seed=options.seed or 0,
        ),
        progress=show_search,
    )


def _write_files(
    timeline: Timeline, measured: Timeline | None, options: argparse.Namespace
) -> None:
    pictures = [path for path in (options.svg, options.png) if path]
    if pictures:
        from parallel.study.draw import save  # only here: matplotlib takes its time to load

        save(timeline, *pictures, measured=measured, transfers=options.transfers)
    if options.trace:
        from parallel.study.trace import write_trace

        runs = {"simulated": timeline}
        write_trace(runs | {"measured": measured} if measured else runs, options.trace)
    if options.table:
        from parallel.schedule.table_file import write_table

        write_table(timeline.schedule, options.table, lowered=options.lowered)


def _print(simulated: Simulated, measured: Timeline | None, as_json: bool) -> None:
    from rich.console import Console

    from parallel.schedule.cycle_collector import collector_paused
    from parallel.study.timeline_table import critical_path_line, summary, table

    if found := simulated.found:
        print(
            f"search: {found.makespan:.6g} after {found.moves} moves in {found.seconds:.1f} s, "
            f"from {found.start} with {found.start_makespan:.6g}; bound {found.lower_bound:.6g}",
            file=sys.stderr,
        )
    timelines = dict(simulated.timelines)
    explained = [next(iter(timelines.values()))]
    if measured:
        timelines[f"{measured.schedule.name}, measured"] = measured
        explained.append(measured)
    if as_json:
        print(json.dumps({name: summary(timelines[name]) for name in timelines}, indent=2))
        return
    first, console = explained[0].schedule, Console(width=None if sys.stdout.isatty() else 100)
    with collector_paused():
        console.print(f"{first.ranks} ranks, {first.micro_batches} micro-batches")
        console.print(table(timelines))
        for timeline in explained:
            console.print(critical_path_line(timeline), soft_wrap=True, markup=False, emoji=False)


if __name__ == "__main__":
    sys.exit(main())
