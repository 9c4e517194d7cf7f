"""Look at all nodes before a run: versions, environment, clocks, disk, speed of each GPU and link.

Names every node that is slow or unlike the others, and then ends on exit code 2. Starts one process
for each rank of the config's mesh by itself, or runs as one rank where torchrun has started it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from parallel.ranks.environment import place_from_environment
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.run.exit import reported, say
from trainer.run.local_ranks import require_room, run_ranks_here
from trainer.run.rank import run_rank, said_once
from trainer.run.signals import StopRequest

EXAMPLES = """\
examples:
  python launch/preflight.py --config configs/node_8gpu.yaml
  torchrun --nproc-per-node 4 launch/preflight.py --config configs/cpu_4proc.yaml --slow 0.5 --json

launch/submit/node.sh runs it on all nodes before it trains. What is measured, on all at once:
  matrix product    of each rank: bfloat16 on CUDA, float32 on the CPU.
  all-to-all        of the ranks of each node: NVLink, on most machines.
  link              between nodes, from rank to rank, there and back, with up to eight other nodes;
                    the best counts, since the others of a slow node are slow only with it.
On CUDA the medians are also held against what the section cluster of the config says, so that it is
seen where all nodes are slow: where NCCL does not find the cards of the network, say.
A rank is slow below --slow times the median of all ranks. Of two nodes with a slow link between
them nobody can say which one it is. docs/scale.md has more.
"""
_MOST_SECONDS = 300.0  # of any collective here; a run may allow more


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what is wrong."""
    return reported("preflight", lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    with said_once():
        config, options = _parse(arguments)
        place, world = place_from_environment(), mesh_of(config).world
        if place is None:
            require_room("preflight", world)
        validate(config, world if place is None else place.world)
        if not (0 < options["slow"] < 1 and 0 <= options["least"] < 1):
            raise ConfigError("--slow and --least are parts of a rate, between 0 and 1")
        if options["skew"] <= 0 or options["free"] < 0:
            raise ConfigError("--skew is above 0, --free 0 or more")
    if place is None and world > 1:
        return run_ranks_here("preflight", world)
    run_rank("preflight", lambda stop: _rank(config, options, stop))


def _parse(arguments: Sequence[str]) -> tuple[Config, dict[str, float]]:
    parser = config_parser("preflight", __doc__ or "", EXAMPLES)
    add = parser.add_argument
    slow = "A rank is slow below this part of the median. (default: %(default)s)"
    add("--slow", type=float, default=0.8, help=slow)
    skew = "Seconds by which a node's clock may be off. (default: %(default)s)"
    add("--skew", type=float, default=1.0, help=skew)
    least = "All are slow where the median is below this part of what the section cluster says."
    add("--least", type=float, default=0.3, help=f"{least} (default: %(default)s)")
    free = "GiB that run.dir must have free. (default: %(default)s)"
    add("--free", type=float, default=1.0, help=free)
    add("--json", action="store_true", help="Print one JSON object instead of a table.")
    config, given = parse(parser, arguments)
    return config, {name: given[name] for name in ("slow", "least", "skew", "free", "json")}


def _rank(config: Config, options: dict[str, float], stop: StopRequest) -> None:
    from parallel.ranks.process import Process, join, leave
    from trainer.io.terminal import plain_console
    from trainer.plan.datasheets import machine_of
    from trainer.preflight.judge import Limits, stated
    from trainer.preflight.preflight import PreflightError, preflight
    from trainer.preflight.report import as_json, show

    process = Process.from_environment()
    device = process.device(config.run.device)
    timeout = timedelta(seconds=min(config.run.timeout, _MOST_SECONDS))
    roll_call = join(process, device, timeout, "env://")
    first = process.rank == 0

    def begin(what: str) -> None:
        roll_call.note(f"in {what}")
        if first:
            say(f"preflight: {what}")

    with roll_call.held_on_failure(lambda: stop.asked):
        limits = Limits(
            slow=options["slow"],
            skew=options["skew"],
            free=int(options["free"] * 2**30),
            least=options["least"],
            stated=stated(machine_of(config.cluster)) if device.type == "cuda" else {},
        )
        result = preflight(process, device, Path(config.run.dir), limits, begin, timeout)
    if first and options["json"]:
        print(json.dumps(as_json(result), indent=2), flush=True)
    elif first:
        show(result, plain_console(width=120))
    leave()
    if result.problems and first:
        raise PreflightError(result.line)
    if result.problems:
        sys.exit(PreflightError.exit_code)


if __name__ == "__main__":
    sys.exit(main())
