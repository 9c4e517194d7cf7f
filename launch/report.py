"""Draw and compare runs, from what they write into their folders, finished or not."""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parallel.files.shown import printable
from trainer.errors import ConfigError, RunError
from trainer.io.command_parser import CommandParser
from trainer.report.picture import PICTURE, save_figure, save_picture
from trainer.report.run_log import RunLog, read_run
from trainer.report.summary import show, summary
from trainer.run.exit import guarded

EXAMPLES = """\
examples:
  python launch/report.py runs/cpu_4proc
  python launch/report.py runs/first runs/second --png both.png
  python launch/report.py runs/* --json
  python launch/report.py runs/fp8-0 runs/fp8-1 --against runs/bf16-0 runs/bf16-1

The picture has the loss (points: validation), learning rate, gradient norm, balance, load and
tokens/s of all runs, restarts, skipped steps, loss spikes and rollbacks as marks on the curves,
checkpoints below the loss; of one run it is RUN/run.png where --png names no other file, of
several runs.png in the first one's folder. The table has the last values; valid: validation loss,
best: the least of them, bits/B: bits per byte; below it, how often which event happened, and the
last five. --json prints {runs, png, problems}; png is null where there is no picture; each run has
run, steps, loss, validation_loss, validation_bits_per_byte, gradient_norm, load_max,
best_validation_loss, tokens_per_second, seconds, events, skipped_lines, values_not_finite. An
event is {event, step, text}; steps count from 1. --against pairs runs with others in their order,
and says and draws how far their losses are apart, in windows of a twentieth of their steps; --json
then prints {difference: {pairs, together, windows}, png}, of relative differences. The exit code is
0; 1 where a run cannot be read (the others are drawn) or the picture cannot be written; 2 for wrong
arguments. docs/metrics.md has more.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on each thing that cannot be done."""
    return guarded("report", lambda: _run(_options(arguments)))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    options = _parser().parse_args(arguments)
    if options.png is not None and options.png.suffix != ".png":
        raise ConfigError(f"--png must name a .png file, got {options.png}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("report", __doc__, EXAMPLES)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, or its metrics.jsonl")
    add("--against", type=Path, nargs="+", metavar="RUN", help="runs to compare losses with")
    add("--png", type=Path, metavar="FILE", help="where the picture goes")
    add("--json", action="store_true", help="print one JSON object in place of the table")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.against:
        return _compare(options)
    runs: list[RunLog] = []
    problems: list[str] = []
    for path in options.runs:
        with _noted(problems):
            runs.append(read_run(path))
    if runs and not options.json:
        show(runs)
    png = None
    if runs:
        with _noted(problems):
            wanted = options.png or _usual_png(runs)
            save_picture(runs, wanted)
            png = wanted
    if options.json:
        said = {
            "runs": [summary(run) for run in runs],
            "png": None if png is None else str(png),
            "problems": problems,
        }
        print(json.dumps(said))
    elif png is not None:
        print(f"picture in {printable(png)}")
    return RunError.exit_code if problems else 0


def _compare(options: argparse.Namespace) -> int:
    """Raises RunError for what cannot be compared."""
    from trainer.report.difference import difference, draw_difference, lines

    runs, others = (list(map(read_run, paths)) for paths in (options.runs, options.against))
    found = difference(runs, others)
    png = options.png or _folder(runs[0]) / "against.png"
    save_figure(lambda: draw_difference(found), png)
    if options.json:
        print(json.dumps({"difference": found.as_json(), "png": str(png)}))
        return 0
    for line in lines(found):
        print(line)
    print(f"picture in {printable(png)}")
    return 0


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Say what cannot be done, note it, and go on."""
    try:
        yield
    except RunError as error:
        problems.append(str(error))
        print(f"report: {error}", file=sys.stderr)


def _usual_png(runs: Sequence[RunLog]) -> Path:
    return _folder(runs[0]) / (PICTURE if len(runs) == 1 else "runs.png")


def _folder(run: RunLog) -> Path:
    path = Path(run.name)
    return path if path.is_dir() else path.parent


if __name__ == "__main__":
    sys.exit(main())
