"""The passes of a step through the tape and the executor, without an optimizer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from parallel.schedule.table import Item
from trainer.bench.throughput import random_parts
from trainer.bench.turns import Step
from trainer.build.layout import Layout
from trainer.objective.pretraining import LOSS
from trainer.recipe.progress import Progress
from trainer.recipe.recipe import Recipe


def engine_step(
    layout: Layout, on_item: Callable[[Item, float, float], None] | None = None
) -> Step:
    """Forward and backward passes of all micro-batches, into gradients that start at zero; gives
    the mean loss, as far as this rank computes it. on_item: that of an Executor."""
    executor = layout.training_executor(layout.config.pipeline.micro_batches, overlap=True)
    executor.on_item = on_item
    weights = layout.loss_weights(Recipe(layout.config).at(Progress()))
    per_flow = executor.schedule.micro_batches_per_flow

    def step(batch: int) -> float:
        parts = random_parts(layout, batch)
        layout.optimizer.zero()
        result = executor.run(lambda flow, n: parts[flow * per_flow + n], weights)
        return float(result.losses.get(LOSS, 0.0)) * weights[LOSS]

    return step


def engine_gradients(layout: Layout) -> dict[str, Tensor]:
    """Of the last step on this rank, by the name of the parameter in the model."""
    parameters = layout.part.named_parameters()
    return {name: p.grad for name, p in parameters if p.grad is not None}
