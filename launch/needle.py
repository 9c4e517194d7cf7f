"""Find a needle in a haystack: how far back in a text a model can look something up.

`make` writes texts with pairs such as K7 among words, which are asked for at the end, to train
on. `measure` asks checkpoints for one pair at each depth of texts of each length.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import sys
from pathlib import Path

from parallel.files.outputs import require_outputs, write_file
from trainer.errors import ConfigError
from trainer.io.command_parser import CommandParser
from trainer.io.option_types import file_ending_in, whole_number
from trainer.io.terminal import plain_console
from trainer.run.exit import guarded

EXAMPLES = """\
examples:
  python launch/needle.py make --length 250 --texts 60000 --out needles.jsonl
  python launch/needle.py measure runs/short/weights runs/long/weights --lengths 250 500 1000
  python launch/needle.py measure runs/long/weights --lengths 1000 --picture needles.png --json

A pair is found if the model goes on with its digit, greedily; by chance one in ten is.
docs/long_context.md has what was measured, and with which commands.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    run = _make if options.command == "make" else _measure
    return guarded("needle", lambda: run(options))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("needle", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=CommandParser)
    make = commands.add_parser("make", help="write texts to train on, as JSON lines")
    make.add_argument("--length", type=whole_number(30), required=True, help="characters, at most")
    make.add_argument("--least", type=whole_number(30), help="at least (half of --length)")
    make.add_argument("--texts", type=whole_number(1), required=True, help="how many")
    make.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    make.add_argument("--seed", type=whole_number(0), default=0, help="of what is random (0)")
    ask = commands.add_parser("measure", help="ask checkpoints")
    ask.add_argument("checkpoint", type=Path, nargs="+", metavar="DIR", help="such as RUN/weights")
    ask.add_argument(
        "--lengths", type=whole_number(30), nargs="+", required=True, help="of texts, characters"
    )
    ask.add_argument("--depths", type=whole_number(2, 50), default=5, help="how many depths (5)")
    ask.add_argument("--needles", type=whole_number(1), default=50, help="for each (50)")
    ask.add_argument("--seed", type=whole_number(0), default=1, help="of the texts (1)")
    ask.add_argument("--picture", type=file_ending_in(".png"), metavar="FILE", help="draw it")
    ask.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _make(options: argparse.Namespace) -> None:
    import numpy as np

    from trainer.needle.haystack import training_text

    least = options.least or options.length // 2
    if least > options.length:
        raise ConfigError(f"--least {least} is more than --length {options.length}")
    random = np.random.RandomState(options.seed)
    lengths = random.randint(least, options.length + 1, options.texts)
    lines = (json.dumps({"text": training_text(int(length), random)}) for length in lengths)
    write_file(options.out, "\n".join(lines) + "\n")
    print(f"{options.out}: {options.texts:,} texts of {least} to {options.length} characters")


def _measure(options: argparse.Namespace) -> None:
    from trainer.io.count_progress import count_progress
    from trainer.needle.measure import load, measure
    from trainer.needle.picture import draw

    if options.picture is not None:
        require_outputs({"--picture": options.picture}, ["--picture"])
    depths = [place / (options.depths - 1) for place in range(options.depths)]
    results = []
    for folder in options.checkpoint:
        model = load(folder)
        with count_progress(str(folder)) as show:
            results.append(
                measure(
                    model, str(folder), options.lengths, depths, options.needles, options.seed, show
                )
            )
    if options.picture is not None:
        draw(results, options.picture)
    if options.json:
        print(json.dumps([found.as_json() for found in results], indent=2))
        return
    for found in results:
        plain_console().print(_table(found))


def _table(found):  # type: ignore[no-untyped-def]
    from rich.table import Table

    table = Table(title=f"{found.name}: found of {found.tried}", title_justify="left")
    table.add_column("depth", justify="right")
    for length in found.lengths:
        table.add_column(f"{length:,}", justify="right")
    for place, depth in enumerate(found.depths):
        table.add_row(f"{depth:.0%}", *(f"{row[place]:.0%}" for row in found.shares))
    table.add_section()
    table.add_row("all", *(f"{share:.0%}" for share in found.by_length()))
    return table


if __name__ == "__main__":
    sys.exit(main())
