"""Train a DeepSeek-V3-style model: python launch/train.py --config FILE.

Starts one process for each rank of the config's mesh by itself, or runs as one rank where torchrun
has started it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import sys
from collections.abc import Sequence

from parallel.ranks.environment import place_from_environment
from trainer.config.config_file import with_extended
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.validate import validate
from trainer.dry.command import add_dry_run_options, dry_run, dry_run_wanted
from trainer.run.exit import reported
from trainer.run.local_ranks import limit_threads, require_room, run_again_and_again
from trainer.run.print_schedule import add_schedule_options, print_schedule, schedule_wanted
from trainer.run.rank import run_rank, said_once

EXAMPLES = """\
examples:
  python launch/train.py --config configs/single.yaml
  python launch/train.py --config configs/cpu_4proc.yaml --run.steps 20
  python launch/train.py --config configs/single.yaml --data.path my_texts/ --print-config
  python launch/train.py --config configs/deepseek_v3_2048.yaml --print-schedule
  python launch/train.py --config configs/deepseek_v3_2048.yaml --dry-run --rank 1024
  torchrun --nproc-per-node 4 launch/train.py --config configs/cpu_4proc.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    return reported("train", lambda: _train(sys.argv[1:] if arguments is None else arguments))


def _train(arguments: Sequence[str]) -> int:
    parser = config_parser("train", __doc__ or "", EXAMPLES)
    add_schedule_options(parser)
    add_dry_run_options(parser)
    with said_once():
        config, namespace = parse(parser, arguments)
        if schedule_wanted(namespace):
            return print_schedule(config, namespace)
        if dry_run_wanted(namespace):
            return dry_run(config, namespace)
        place, ranks = place_from_environment(), mesh_of(config).world
        if place is None:
            require_room("train", ranks)
        validate(config, ranks if place is None else place.world)
    if place is None and (ranks > 1 or config.run.restarts):
        return run_again_and_again("train", ranks, config.run.restarts)
    if place is None:
        limit_threads()
    from trainer.run.train import train  # imports torch, which a bad config need not wait for

    files = [each for file in namespace.config or () for each in with_extended(str(file))]
    run_rank("train", lambda stop: train(config, to_yaml(parser, namespace), stop, files))


if __name__ == "__main__":
    sys.exit(main())
