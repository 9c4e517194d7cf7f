"""Simulate a pipeline schedule, compare schedules, draw their timelines.

The schedule table is checked, lowered and run under the given costs; nothing is trained and no
process is started.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from parallel.pipeline.check import check
from parallel.pipeline.draw import save
from parallel.pipeline.generators import GENERATORS, generate
from parallel.pipeline.schedule import Schedule, ScheduleError
from parallel.pipeline.simulate import CostModel, Timeline, simulate

EXAMPLES = """\
examples:
  python launch/simulate.py --schedule dualpipe --ranks 8 --micro-batches 20 --pair-factor 0.85
  python launch/simulate.py --ranks 16 --micro-batches 64 --pair-factor 0.85 --compare all
  python launch/simulate.py --schedule dualpipev --ranks 8 --micro-batches 32 --hop 0.05 --json
  python launch/simulate.py --schedule dualpipe --ranks 8 --micro-batches 20 --pair-factor 0.85 \\
      --svg docs/images/dualpipe.svg --png docs/images/dualpipe.png

Costs are in any one unit. Those of F, I and W are for a full stage, one P-th of the model for P
ranks; DualPipeV's stages are half as large and cost half. Peaks are in full-stage activations.
--json prints {schedule: {makespan, idle_fraction, idle_by_rank, peak_in_flight}}, where
idle_by_rank is in the unit of the costs and idle_fraction is of the time of all ranks.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        names = _names(options.schedule, options.compare)
        timelines, refusals = _simulate_all(names, options)
        _write_files(timelines[options.schedule], options)
    except (ScheduleError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({name: _summary(timelines[name]) for name in timelines}, indent=2))
    else:
        Console().print(_table(timelines, options))
    for refusal in refusals:
        print(f"simulate: left out: {refusal}", file=sys.stderr)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage around it."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="simulate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--schedule", default="dualpipe", metavar="NAME", help=f"{', '.join(GENERATORS)}")
    add("--ranks", type=int, required=True, metavar="P", help="pipeline ranks")
    add("--micro-batches", type=int, required=True, metavar="M", help="of all flows together")
    add("--forward", type=_cost, default=1.0, metavar="T", help="cost of F, a full stage (1)")
    add("--input-grad", type=_cost, default=1.0, metavar="T", help="cost of I, a full stage (1)")
    add("--weight-grad", type=_cost, default=1.0, metavar="T", help="cost of W, a full stage (1)")
    add(
        "--pair-factor",
        type=_cost,
        default=1.0,
        metavar="K",
        help="cost of an overlapped pair over the sum of its parts (1)",
    )
    add(
        "--hop",
        type=_cost,
        default=0.0,
        metavar="T",
        help="cost of a message from rank to rank, sent while both compute (0)",
    )
    add("--compare", metavar="NAMES", help="also simulate these: all, or names with commas between")
    add("--svg", type=Path, metavar="FILE", help="draw the timeline of --schedule as SVG")
    add("--png", type=Path, metavar="FILE", help="draw the timeline of --schedule as PNG")
    add("--table", type=Path, metavar="FILE", help="write the table of --schedule as JSON")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _cost(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a cost is a number from 0 up, not {text}")
    return value


def _names(schedule: str, compare: str | None) -> list[str]:
    """The schedule asked for, then those to compare it with, each once."""
    others = list(GENERATORS) if compare == "all" else compare.split(",") if compare else []
    return list(dict.fromkeys([schedule, *others]))


def _simulate_all(
    names: list[str], options: argparse.Namespace
) -> tuple[dict[str, Timeline], list[str]]:
    """Timelines by name, and why others could not be; the first name must be."""
    costs = CostModel(
        forward=options.forward,
        input_grad=options.input_grad,
        weight_grad=options.weight_grad,
        pair_factor=options.pair_factor,
        hop=options.hop,
    )
    timelines: dict[str, Timeline] = {}
    refusals: list[str] = []
    for name in names:
        try:
            schedule = generate(name, options.ranks, options.micro_batches)
        except ScheduleError as error:
            if name == options.schedule or name not in GENERATORS:
                raise
            refusals.append(str(error))
            continue
        check(schedule)
        timelines[name] = simulate(schedule, costs)
    return timelines, refusals


def _write_files(timeline: Timeline, options: argparse.Namespace) -> None:
    pictures = [path for path in (options.svg, options.png) if path]
    if pictures:
        save(timeline, *pictures)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(json.dumps(timeline.schedule.rows()) + "\n")


def _summary(timeline: Timeline) -> dict[str, object]:
    return {
        "makespan": timeline.makespan,
        "idle_fraction": timeline.idle_fraction,
        "idle_by_rank": list(timeline.idle),
        "peak_in_flight": list(timeline.peak_in_flight),
    }


def _table(timelines: dict[str, Timeline], options: argparse.Namespace) -> Table:
    table = Table(title=f"{options.ranks} ranks, {options.micro_batches} micro-batches")
    table.add_column("schedule")
    for column in ("makespan", "idle %", "peak activations", "parameters held"):
        table.add_column(column, justify="right")
    for name, timeline in timelines.items():
        table.add_row(
            name,
            f"{timeline.makespan:.6g}",
            f"{100 * timeline.idle_fraction:.1f}",
            f"{max(timeline.peak_in_flight):g}",
            f"{_parameters_held(timeline.schedule):g} x",
        )
    table.caption = "activations in full stages; 1 x is one P-th of the model"
    return table


def _parameters_held(schedule: Schedule) -> float:
    """Full stages' worth of parameters on the rank that holds most."""
    most = max(len(schedule.stages_of(rank)) for rank in range(schedule.ranks))
    return most * schedule.stage_share


if __name__ == "__main__":
    sys.exit(main())
