"""The truth test: run schedules in real processes whose stages sleep, beside their simulation.

Every rank is a process of this machine, every message a gloo transfer; only the computation is
replaced by sleep, so that many ranks fit few cores. --torch then compares with the same schedules
of torch.distributed.pipelining on the same sleeping stages.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from trainer.run.exit import guarded

# All else is imported by the functions that need it, so that Ctrl-C ends in one line at any time.
if TYPE_CHECKING:
    from parallel.pipeline.truth.results import Comparison, Truth, TruthTest
    from parallel.study.costs import CostModel
    from trainer.io.command_parser import CommandParser

EXAMPLES = """\
examples:
  python launch/truth.py
  python launch/truth.py --ranks 4 --micro-batches 8 --pair-factor 0.85
  python launch/truth.py --schedules 1f1b,dualpipev --stage 30 --repeats 5 --json
  python launch/truth.py --schedules 1f1b,zb-h1 --costs costs.yaml --ranks 4 --micro-batches 12
  python launch/truth.py --schedules none --torch
  sudo python launch/truth.py --torch --real-time      # on a machine that does other work too

A run is timed from one common start until the last rank's executor has returned; of --repeats runs
the best counts. "in items" is what items took beyond their cost, "in messages" what was lost
between them, both as a part of the simulated makespan. docs/truth.md has more.
Exit code: 0; 1 if a schedule is off by more than --within; 2 for what cannot be run; 130 after
Ctrl-C.
"""
STAGE, PAIR_FACTOR, WITHIN = 60.0, 1.0, 3.0


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded("truth", lambda: _measure(arguments))


def _measure(arguments: list[str] | None) -> int:
    options = _parse(arguments)
    test = _test(options)
    from parallel.pipeline.truth.measure import measure  # imports torch

    found, beside = measure(test)
    within = WITHIN if options.within is None else options.within
    _print(found, beside, options, within)
    off = [truth.name for truth in found if abs(truth.ratio - 1) > within / 100]
    if off:
        print(f"truth: off by more than {within:g} %: {', '.join(off)}", file=sys.stderr)
    return 1 if off else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    from parallel.pipeline.truth.choice import in_torch
    from parallel.pipeline.truth.results import IN_TORCH

    parser = _parser()
    options = parser.parse_args(arguments)
    if options.costs:
        parser.refuse(options, ["--stage", "--pair-factor"], "with --costs")
    if not options.schedules:
        parser.refuse(options, ["--within"], "with --schedules none")
        if not options.torch:
            parser.error("--schedules none without --torch leaves nothing to run")
    if options.torch and "all" not in options.schedules and not in_torch(options.schedules):
        names = ", ".join(IN_TORCH)
        parser.error(f"--torch compares {names}: name one of them in --schedules, or none")
    if options.real_time and os.geteuid() != 0:
        parser.error("--real-time needs root")
    return options


def _parser() -> CommandParser:
    from parallel.pipeline.truth.choice import MOST_RANKS
    from parallel.schedule.generators import GENERATORS
    from parallel.study.costs import MOST
    from trainer.io import option_types as types
    from trainer.io.command_parser import CommandParser

    parser = CommandParser("truth", __doc__, EXAMPLES)
    above_zero, names = types.number(1 / MOST, MOST), ["all", *GENERATORS]
    schedules = types.names_of("schedule", names, {"none": []})
    add = parser.add_argument
    which = "all, none, or names separated by commas (all)"
    add("--schedules", type=schedules, default=["all"], metavar="NAMES", help=which)
    ranks = types.whole_number(1, MOST_RANKS)
    add("--ranks", type=ranks, default=8, metavar="P", help="pipeline ranks, a process each (8)")
    count = types.whole_number(1)
    add("--micro-batches", type=count, default=16, metavar="M", help="in all flows together (16)")
    stage = "milliseconds of F, of I and of W of a full stage, one P-th of the model (60)"
    add("--stage", type=above_zero, metavar="MS", help=stage)
    factor = "cost of an overlapped pair over the sum of its parts (1)"
    add("--pair-factor", type=above_zero, metavar="K", help=factor)
    costs = "YAML file with F, I, W and pair_factor in seconds, by stage; other keys are not used"
    add("--costs", metavar="FILE", help=costs)
    repeats = types.whole_number(1, 1000)
    add("--repeats", type=repeats, default=3, metavar="N", help="runs of each, the best counts (3)")
    within = "how far the best run may be from the simulation (3)"
    add("--within", type=above_zero, metavar="PERCENT", help=within)
    beside = "compare with torch.distributed.pipelining; always with a pair factor of 1"
    add("--torch", action="store_true", help=beside)
    real_time = "run before all ordinary processes of the machine; needs root"
    add("--real-time", action="store_true", help=real_time)
    add("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def _test(options: argparse.Namespace) -> TruthTest:
    """What to measure; says on stderr what is left out of all schedules."""
    from parallel.pipeline.truth.choice import chosen, chosen_of_all, in_torch
    from parallel.pipeline.truth.results import TruthTest
    from parallel.schedule.generators import GENERATORS
    from parallel.schedule.settings import Setting, SettingError
    from parallel.schedule.table import ScheduleError

    def line(error: ScheduleError) -> str:
        return error.worded(words) if isinstance(error, SettingError) else str(error)

    words = {
        Setting.SCHEDULE: "--schedules",
        Setting.RANKS: "--ranks",
        Setting.MICRO_BATCHES: "--micro-batches",
    }
    everything = "all" in options.schedules
    names = [] if everything else options.schedules
    test = TruthTest(
        names=tuple(names),
        with_torch=in_torch(names) if options.torch else (),
        ranks=options.ranks,
        micro_batches=options.micro_batches,
        costs=_costs(options),
        repeats=options.repeats,
        real_time=options.real_time,
    )
    try:
        if not everything:
            return chosen(test)
        test, left_out = chosen_of_all(test, tuple(GENERATORS))
    except SettingError as error:
        raise ScheduleError(line(error)) from None
    for name, reason in left_out.items():
        print(f"truth: left out: {name}: {line(reason).removeprefix(name + ' ')}", file=sys.stderr)
    return test


def _costs(options: argparse.Namespace) -> CostModel:
    """Of what a stage does; nothing else is simulated, as nothing else sleeps."""
    from parallel.study.costs import CostModel, read_costs

    if options.costs is None:
        seconds = (STAGE if options.stage is None else options.stage) / 1000
        factor = PAIR_FACTOR if options.pair_factor is None else options.pair_factor
        return CostModel(seconds, seconds, seconds, factor)
    read = read_costs(options.costs)
    return CostModel(read.forward, read.input_grad, read.weight_grad, read.pair_factor)


def _print(
    found: list[Truth], beside: list[Comparison], options: argparse.Namespace, within: float
) -> None:
    from rich.console import Console

    from parallel.files.shown import printable
    from parallel.pipeline.truth.report import as_json, torch_table, truth_table

    if options.json:
        print(json.dumps(as_json(found, beside), indent=2))
        return
    stage = STAGE if options.stage is None else options.stage
    costs = printable(options.costs) if options.costs else f"{stage:g} ms for F, I and W"
    title = f"{options.ranks} ranks, {options.micro_batches} micro-batches, {costs}"
    factor = PAIR_FACTOR if options.pair_factor is None else options.pair_factor
    console = Console()
    if found:
        by_costs = title if options.costs else f"{title}, k {factor:g}"
        console.print(truth_table(found, by_costs, within))
    if beside:
        console.print(torch_table(beside, f"{title}, k 1"))


if __name__ == "__main__":
    sys.exit(main())
