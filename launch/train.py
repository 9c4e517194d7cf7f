"""Train a DeepSeek-V3-style model: torchrun --nproc-per-node N launch/train.py --config FILE."""

from __future__ import annotations

import os
import sys

from trainer.config.parse import config_parser, parse, to_yaml
from trainer.config.validate import validate
from trainer.errors import ConfigError
from trainer.run.rank import refuse, run_guarded

EXAMPLES = """\
examples:
  python launch/train.py --config configs/single.yaml
  torchrun --nproc-per-node 4 launch/train.py --config configs/cpu_4proc.yaml
  torchrun --nproc-per-node 4 launch/train.py --config configs/cpu_4proc.yaml --run.steps 20
  python launch/train.py --config configs/single.yaml --data.path my_texts/ --print-config
"""


def main() -> None:
    parser = config_parser("train", __doc__ or "", EXAMPLES)
    try:
        config, namespace = parse(parser, sys.argv[1:])
        validate(config, int(os.environ.get("WORLD_SIZE", 1)))
    except ConfigError as error:
        refuse(error, "train")
    from trainer.run.loop import train  # imports torch, which a bad config need not wait for

    files = [str(file) for file in namespace.config or ()]
    run_guarded(lambda stop: train(config, to_yaml(parser, namespace), stop, files), "train")


if __name__ == "__main__":
    main()
