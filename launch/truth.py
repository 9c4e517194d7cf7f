"""The truth test: run schedules in real processes whose stages sleep, beside their simulation.

Every rank is a process of this machine, every message a gloo transfer; only the computation is
replaced by sleep, so that many ranks fit few cores. --torch then compares with the same schedules
of torch.distributed.pipelining on the same sleeping stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys

from rich.console import Console
from rich.table import Table

from parallel.pipeline.truth.results import IN_TORCH, Comparison, Truth, TruthTest
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.table import ScheduleError
from parallel.study.costs import CostModel, Costs, read_costs
from trainer.io.command_parser import CommandParser

EXAMPLES = """\
examples:
  python launch/truth.py
  python launch/truth.py --ranks 4 --micro-batches 8 --pair-factor 0.85
  python launch/truth.py --schedules 1f1b,dualpipev --stage 30 --repeats 5 --json
  python launch/truth.py --schedules 1f1b,zb-h1 --costs costs.yaml --ranks 4 --micro-batches 12
  python launch/truth.py --schedules none --torch
  sudo python launch/truth.py --torch --real-time      # on a machine that does other work too

A run takes from one common moment until the last rank's executor has returned; of --repeats runs
the best counts. "in items" is what items took beyond their cost, "in messages" what was lost
between them, both as a part of the simulated makespan. docs/truth.md has more.
Exit code: 0, 1 if a schedule is off by more than --within, 2 for what cannot be run.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        test = _test(options)
    except (ScheduleError, OSError) as error:
        print(f"truth: {error}", file=sys.stderr)
        return 2
    from parallel.pipeline.truth.measure import measure  # imports torch

    try:
        found, beside = measure(test)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if options.json:
        print(json.dumps(_as_json(found, beside), indent=2))
    else:
        console = Console()
        if found:
            console.print(_truth_table(found, options))
        if beside:
            console.print(_torch_table(beside, options))
    off = [truth.name for truth in found if abs(truth.ratio - 1) > options.within / 100]
    if off:
        print(f"truth: off by more than {options.within:g} %: {', '.join(off)}", file=sys.stderr)
    return 1 if off else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("truth", __doc__, EXAMPLES)
    add = parser.add_argument
    add("--schedules", default="all", metavar="NAMES", help="all, none, or names with commas (all)")
    add("--ranks", type=int, default=8, metavar="P", help="pipeline ranks, a process each (8)")
    add("--micro-batches", type=int, default=16, metavar="M", help="of all flows together (16)")
    stage = "milliseconds of F, of I and of W of a full stage, one P-th of the model (60)"
    add("--stage", type=_above_zero, default=60.0, metavar="MS", help=stage)
    factor = "cost of an overlapped pair over the sum of its parts (1)"
    add("--pair-factor", type=_above_zero, default=1.0, metavar="K", help=factor)
    costs = "times by stage from a YAML file, in seconds, in place of --stage and --pair-factor"
    add("--costs", metavar="FILE", help=costs)
    add("--repeats", type=_count, default=3, metavar="N", help="runs of each, the best counts (3)")
    within = "how far the best run may be from the simulation (3)"
    add("--within", type=_above_zero, default=3.0, metavar="PERCENT", help=within)
    beside = "compare with torch.distributed.pipelining; always with a pair factor of 1"
    add("--torch", action="store_true", help=beside)
    real_time = "run before all ordinary processes of the machine; needs root"
    add("--real-time", action="store_true", help=real_time)
    add("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def _test(options: argparse.Namespace) -> TruthTest:
    if options.real_time and os.geteuid() != 0:
        raise ScheduleError("--real-time needs root")
    costs = _costs(options)
    given = options.schedules
    names = list(GENERATORS) if given == "all" else [] if given == "none" else given.split(",")
    with_torch = [n for n in names or IN_TORCH if n in IN_TORCH] if options.torch else []
    if not names and not with_torch:
        raise ScheduleError("--schedules none without --torch leaves nothing to run")
    for name in dict.fromkeys([*names, *with_torch]):
        try:
            Costs(costs, generate(name, options.ranks, options.micro_batches))
        except ScheduleError as error:
            if given != "all":
                raise
            print(f"truth: left out: {name}: {error}", file=sys.stderr)
            names = [n for n in names if n != name]
            with_torch = [n for n in with_torch if n != name]
    return TruthTest(
        names=tuple(names),
        with_torch=tuple(with_torch),
        ranks=options.ranks,
        micro_batches=options.micro_batches,
        costs=costs,
        repeats=options.repeats,
        real_time=options.real_time,
    )


def _costs(options: argparse.Namespace) -> CostModel:
    """Of what a stage does; nothing else is simulated, as nothing else sleeps."""
    if options.costs is None:
        seconds = options.stage / 1000
        return CostModel(seconds, seconds, seconds, options.pair_factor)
    read = read_costs(options.costs)
    return CostModel(read.forward, read.input_grad, read.weight_grad, read.pair_factor)


def _as_json(truths: list[Truth], comparisons: list[Comparison]) -> dict[str, object]:
    return {
        "truth": {
            truth.name: {**_fields(truth), "ratio": truth.ratio, "median_ratio": truth.median_ratio}
            for truth in truths
        },
        "torch": {comparison.name: _fields(comparison) for comparison in comparisons},
    }


def _fields(result: Truth | Comparison) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "name"}


def _truth_table(truths: list[Truth], options: argparse.Namespace) -> Table:
    table = Table(title=f"executor and simulation: {_title(options)}{_factor(options)}")
    table.add_column("schedule")
    for column in ("simulated s", "best s", "ratio", "median", "in items", "in messages"):
        table.add_column(column, justify="right")
    for truth in truths:
        off = abs(truth.ratio - 1) > options.within / 100
        table.add_row(
            truth.name,
            f"{truth.simulated:.3f}",
            f"{min(truth.measured):.3f}",
            f"{truth.ratio:.4f}{' !' * off}",
            f"{truth.median_ratio:.4f}",
            f"{100 * truth.in_items:+.1f} %",
            f"{100 * truth.in_messages:+.1f} %",
        )
    return table


def _torch_table(comparisons: list[Comparison], options: argparse.Namespace) -> Table:
    table = Table(title=f"executor and torch.distributed.pipelining: {_title(options)}, k 1")
    table.add_column("schedule")
    for column in (
        "simulated s",
        "torch s",
        "gradient last s",
        "gradient first s",
        "first / simulated",
    ):
        table.add_column(column, justify="right")
    for c in comparisons:
        torch, ours, first = min(c.torch), min(c.ours), min(c.gradients_first)
        table.add_row(
            c.name,
            f"{c.simulated:.3f}",
            f"{torch:.3f}",
            f"{ours:.3f} ({100 * (ours / torch - 1):+.1f} %)",
            f"{first:.3f} ({100 * (first / torch - 1):+.1f} %)",
            f"{first / c.simulated_gradients_first:.4f}",
        )
    table.caption = "best of the repeats; in brackets ours against torch"
    return table


def _title(options: argparse.Namespace) -> str:
    stage = options.costs or f"{options.stage:g} ms for F, I and W"
    return f"{options.ranks} ranks, {options.micro_batches} micro-batches, {stage}"


def _factor(options: argparse.Namespace) -> str:
    return "" if options.costs else f", k {options.pair_factor:g}"


if __name__ == "__main__":
    sys.exit(main())
