"""launch/train.py with a fault on rank 1: FAULT=raise, nan or flip in step 1, or FAULT=text."""

from __future__ import annotations

import os
import sys

import torch

from trainer.config.parse import config_parser, parse, to_yaml
from trainer.model.stage import ModelStage
from trainer.run.local_ranks import run_ranks_here
from trainer.run.rank import run_rank
from trainer.run.step import Trainer
from trainer.run.train import train


class FaultyLayer(torch.nn.Module):
    """A layer that works for the first step's passes and then does not."""

    def __init__(self, layer: torch.nn.Module, passes: int) -> None:
        super().__init__()
        self.layer, self.passes = layer, passes

    def forward(self, tape, x, documents):  # type: ignore[no-untyped-def]
        self.passes -= 1
        if self.passes < 0 and os.environ["FAULT"] == "raise":
            raise ArithmeticError("a fault in layer 1")
        if self.passes < 0:
            x = x * float("nan")
        return (yield from self.layer(tape, x, documents))


def main() -> None:
    parser = config_parser("failing_train", "", "")
    config, namespace = parse(parser, sys.argv[1:])
    if "RANK" not in os.environ:
        sys.exit(run_ranks_here("failing_train", 2))
    if os.environ.get("RANK") == "1" and os.environ["FAULT"] == "text":
        config.data.path = "other.txt"
    elif os.environ.get("RANK") == "1" and os.environ["FAULT"] == "flip":
        real = Trainer.step

        def step(self, progress, *rest):  # type: ignore[no-untyped-def]
            done = real(self, progress, *rest)
            if progress.step == 1:
                weight = self.layout.part.layers["1"].input_layernorm.weight
                weight.data.view(torch.int32)[3] ^= 1
            return done

        Trainer.step = step
    elif os.environ.get("RANK") == "1":
        plain = ModelStage.forward

        def forward(self, tape, x, micro_batch):  # type: ignore[no-untyped-def]
            layer = self.part.layers["1"]
            if not isinstance(layer, FaultyLayer):
                self.part.layers["1"] = FaultyLayer(layer, config.pipeline.micro_batches)
            return plain(self, tape, x, micro_batch)

        ModelStage.forward = forward  # the fault is injected where a user's layer would have it
    run_rank("failing_train", lambda stop: train(config, to_yaml(parser, namespace), stop))


if __name__ == "__main__":
    main()
