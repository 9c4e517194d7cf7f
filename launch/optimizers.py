"""Measure optimizers side by side: memory of their state, and what they take of a step.

Starts one process for each rank of the config's mesh by itself, or runs as one rank where torchrun
has started it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from parallel.ranks.environment import place_from_environment
from trainer.bench.step_options import add_step_options, require_steps
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.config.schema import Config
from trainer.config.validate import validate
from trainer.run.exit import reported
from trainer.run.local_ranks import require_room, run_ranks_here
from trainer.run.rank import run_rank, said_once
from trainer.run.signals import StopRequest

if TYPE_CHECKING:
    from trainer.bench.optimizers import Cost

EXAMPLES = """\
examples:
  python launch/optimizers.py --config configs/cpu_4proc.yaml --steps 10
  python launch/optimizers.py --config configs/cpu_4proc.yaml --precision.parameters bfloat16 --json

Every optimizer trains a model of its own from the same weights, in turns, on random tokens; that of
the config's section says only with which constants. DeepSpeed's is measured where it is installed.
  state   MiB of moments or momentum on the rank that has most; masters come on top where weights
          are bfloat16.
  step    ms of the median step, until the last rank is done.
  sum     ms that a rank stands still for the sums of the gradients.
  update  ms for new weights, theirs from other ranks included, on the slowest rank.
early: sums start as soon as a stage's gradients are complete; late: when all are.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    return reported("optimizers", lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    with said_once():
        parser = config_parser("optimizers", __doc__ or "", EXAMPLES)
        add_step_options(parser, steps=10, of="optimizer")
        parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
        config, given = parse(parser, arguments)
        require_steps(given["steps"], given["warmup"])
        place, world = place_from_environment(), mesh_of(config).world
        if place is None:
            require_room("optimizers", world)
        validate(config, world if place is None else place.world)
    if place is None and world > 1:
        return run_ranks_here("optimizers", world)
    run_rank(
        "optimizers",
        lambda stop: _rank(config, given["steps"], given["warmup"], given["json"], stop),
    )


def _rank(config: Config, steps: int, warmup: int, as_json: bool, stop: StopRequest) -> None:
    from parallel.ranks.process import Process, join, leave
    from trainer.bench.optimizers import measure

    process = Process.from_environment()
    device = process.device(config.run.device)
    roll_call = join(process, device, timedelta(seconds=config.run.timeout), "env://")
    with roll_call.held_on_failure(lambda: stop.asked):
        costs = measure(config, process, steps, warmup)
    if process.rank == 0 and as_json:
        print(json.dumps([dataclasses.asdict(cost) for cost in costs], indent=2), flush=True)
    elif process.rank == 0:
        _show(costs)
    leave()


def _show(costs: Sequence[Cost]) -> None:
    print(f"{'optimizer':<24}{'state MiB':>10}{'step ms':>9}{'sum ms':>8}{'update ms':>11}")
    for c in costs:
        name = f"{c.name} {c.zero} {'early' if c.early else 'late'}"
        times = f"{1000 * c.step:>9.1f}{1000 * c.sum:>8.1f}{1000 * c.update:>11.1f}"
        print(f"{name:<24}{c.state / 2**20:>10.2f}{times}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
