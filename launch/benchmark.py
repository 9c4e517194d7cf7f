"""Time a training step of one process against another way to take it, in turns, in one run: that of
transformers, or our own in another precision.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.bench.step_options import add_step_options, require_steps
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.io.count_progress import count_progress
from trainer.run.exit import guarded
from trainer.run.local_ranks import limit_threads

if TYPE_CHECKING:
    from trainer.bench.against import Side

OTHERS = ("transformers", "bfloat16", "float32", "float64")
EXAMPLES = """\
examples:
  python launch/benchmark.py --config configs/single.yaml --against transformers
  python launch/benchmark.py --config configs/single.yaml --precision.parameters bfloat16 \\
      --against float32 --steps 20
  OMP_NUM_THREADS=1 python launch/benchmark.py --config configs/single.yaml \\
      --precision.parameters bfloat16 --against transformers --json

Both sides start from the same weights and read the same random tokens, in micro-batches of the same
size, at a constant learning rate; their losses are shown, so that it is plain that they compute the
same.
transformers' side is its model in the type of precision.parameters, torch's clipping and fused
AdamW. It trains neither MTP modules nor the router bias, nor does it add a balance loss here: all
three are off on both sides. On a CPU without instructions for bfloat16, Tandem multiplies in
float32 and rounds, while products of transformers take a hundred times as long.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    return guarded("benchmark", lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> None:
    parser = config_parser("benchmark", __doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--against", choices=OTHERS, default="transformers", help="The other side.")
    add_step_options(parser, steps=10, of="side")
    add("--json", action="store_true", help="Print one JSON object instead of a table.")
    config, given = parse(parser, arguments)
    require_steps(given["steps"], given["warmup"])
    if mesh_of(config).world != 1:
        raise ConfigError("mesh must be 1 x 1 x 1: the other side has one process")
    validate(config, 1)
    limit_threads()
    from trainer.bench.against import comparable, measure, require_installed

    require_installed(given["against"])
    with count_progress("steps") as progress:
        sides = measure(
            comparable(config), given["against"], given["steps"], given["warmup"], progress
        )
    if given["json"]:
        print(json.dumps(_as_json(config, sides), indent=2))
    else:
        _show(config, sides)


def _as_json(config: Config, sides: tuple[Side, Side]) -> dict[str, Any]:
    ours, theirs = sides
    return {
        "tokens_per_step": config.data.global_batch * config.data.sequence_length,
        "sides": {
            side.name: {
                "step_seconds": side.seconds,
                "median_seconds": side.median,
                "losses": side.losses,
            }
            for side in sides
        },
        "speed_up": theirs.median / ours.median,
    }


def _show(config: Config, sides: tuple[Side, Side]) -> None:
    from rich.console import Console
    from rich.table import Table

    tokens = config.data.global_batch * config.data.sequence_length
    table = Table(title=f"one process, {tokens:,} random tokens per step, steps in turns")
    for column in ("", "s/step (median)", "fastest", "tokens/s", "first loss", "last loss"):
        table.add_column(column, justify="right" if column else "left")
    for side in sides:
        table.add_row(
            side.name,
            f"{side.median:.3f}",
            f"{min(side.seconds):.3f}",
            f"{tokens / side.median:,.0f}",
            f"{side.losses[0]:.5f}",
            f"{side.losses[-1]:.5f}",
        )
    # As wide as the table is, where the output is a file.
    console = Console() if Console().is_terminal else Console(width=100)
    console.print(table)
    ours, theirs = sides
    console.print(f"{ours.name}: {theirs.median / ours.median:.2f} x as fast as {theirs.name}")


if __name__ == "__main__":
    sys.exit(main())
