"""Measure the start of a run: process groups, sockets, threads, seconds and memory.

Starts one process for each rank of the config's mesh by itself, or runs as one rank where torchrun
has started it. Nothing is trained, and nothing is written.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from parallel.ranks.environment import place_from_environment
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.run.exit import reported
from trainer.run.local_ranks import require_room, run_ranks_here
from trainer.run.rank import run_rank, said_once

EXAMPLES = """\
examples:
  python launch/measure_start.py --config configs/cpu_8proc.yaml
  TORCH_GLOO_LAZY_INIT=1 python launch/measure_start.py --config configs/cpu_8proc.yaml --json
  python launch/measure_start.py --config configs/deepseek_v3_2048.yaml --as-rank 1000

Each figure is of the rank that has most. Seconds count from when the last rank has imported what it
needs. docs/scale.md has more.
  groups           process groups that a rank has made, the world's and those of one rank included.
  sockets, threads of the process, at the end of the start.
  join             seconds until the world is connected.
  build            seconds from then on, for groups, weights and optimizer.
  peak             MiB of memory that the process has held at most.
--as-rank: only the groups, of one rank of the config's world, with torch's fake process group, that
connects nobody.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    chosen = sys.argv[1:] if arguments is None else arguments
    return reported("measure_start", lambda: _main(chosen))


def _main(arguments: Sequence[str]) -> int:
    with said_once():
        parser = config_parser("measure_start", __doc__ or "", EXAMPLES)
        add = parser.add_argument
        add("--as-rank", type=int, default=None, help="Only the groups of this rank, alone.")
        add("--json", action="store_true", help="Print JSON instead of a table.")
        config, given = parse(parser, arguments)
        place, world, alone = place_from_environment(), mesh_of(config).world, given["as_rank"]
        if alone is not None and not 0 <= alone < world:
            raise ConfigError(f"--as-rank must be between 0 and {world - 1}, got {alone}")
        if alone is None and place is None:
            require_room("measure_start", world)
        validate(config, world if alone is not None or place is None else place.world)
    if alone is None and place is None and world > 1:
        return run_ranks_here("measure_start", world)
    run_rank("measure_start", lambda stop: _rank(config, alone, given["json"]))


def _rank(config: Config, alone: int | None, as_json: bool) -> None:
    from parallel.ranks.process import Process
    from trainer.bench.start import measure_faked_start, measure_start

    process = Process.from_environment()
    measured = measure_start(config, process) if alone is None else None
    start = measured or measure_faked_start(config, alone or 0)
    if process.rank > 0:
        return
    if as_json:
        print(json.dumps(asdict(start), indent=2), flush=True)
        return
    print("ranks  groups  sockets  threads   join s  build s  peak MiB")
    counts = f"{start.ranks:>5}{start.groups:>8}{start.sockets:>9}{start.threads:>9}"
    seconds = f"{start.join:>9.2f}{start.build:>9.2f}"
    print(f"{counts}{seconds}{start.peak / 2**20:>10.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
