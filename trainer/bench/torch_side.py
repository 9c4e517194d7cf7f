"""The stages of one rank as torch.distributed.pipelining runs them, written as its users write
them: plain modules, its PipelineStage, its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from trainer.bench.plain_model import PlainStage, cross_entropy
from trainer.bench.throughput import random_tokens
from trainer.build.layout import Layout

CLASSES: Mapping[str, Any] = {
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}
"""By the names that the same schedules have here."""


class TorchSide:
    """The same stages as those of `layout`, with its weights, under torch's schedule of the same
    name. The loss is the mean over the step: torch divides the sum of the micro-batches' gradients
    by their number."""

    def __init__(self, layout: Layout) -> None:
        schedule, self.layout = layout.schedule, layout
        stages = sorted(stage for _, stage in schedule.stages_of(layout.pipeline_rank))
        self.modules = {stage: _module(layout, stage) for stage in stages}
        parts = [
            PipelineStage(module, stage, schedule.stages, layout.device)
            for stage, module in self.modules.items()
        ]
        runner = CLASSES[schedule.name]
        stages_given = parts[0] if len(parts) == 1 else parts
        self.runner = runner(stages_given, schedule.micro_batches, loss_fn=cross_entropy)

    def step(self, batch: int) -> float:
        """The passes of a step, into gradients that start at zero; gives the mean loss on the rank
        of the last stage, zero on others."""
        config = self.layout.config
        for module in self.modules.values():
            module.zero_grad()
        tokens = random_tokens(config, batch).to(self.layout.device)
        first = any(module.first for module in self.modules.values())
        last = any(module.last for module in self.modules.values())
        losses: list[Tensor] = []
        self.runner.step(
            *((tokens[:, : config.data.sequence_length],) if first else ()),
            target=tokens[:, 1:] if last else None,
            losses=losses if last else None,
            return_outputs=False,
        )
        return float(torch.stack(losses).detach().mean()) if last else 0.0

    def gradients(self) -> dict[str, Tensor]:
        """Of the last step, by the name of the parameter in the model."""
        return {
            name: parameter.grad
            for module in self.modules.values()
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }


def _module(layout: Layout, stage: int) -> PlainStage:
    layers, last = layout.partition.stage_layers(stage), layout.partition.last
    module = PlainStage(layout.config, layers, first=stage == 0, last=stage == last)
    weights = layout.part.state_dict()
    module.load_state_dict({name: weights[name] for name in module.state_dict()})
    return module.to(layout.device)
