"""A training step and an evaluation, on one rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from parallel.expert.router import move_bias
from parallel.pipeline.executor import Executor, StepResult
from parallel.ranks.together import gather
from parallel.tape.recorder import Recorder, Silence
from trainer.build.layout import Layout
from trainer.model.moe import BALANCE
from trainer.model.names import bias_name, named_biases
from trainer.model.partition import layer_name, moe_layers
from trainer.model.stage import MicroBatch
from trainer.optim.average import update_weights
from trainer.recipe.progress import Progress
from trainer.recipe.recipe import Recipe, StepRecipe
from trainer.run.micro_batch import LazyMicroBatch
from trainer.run.totals import BatchTotals, sum_of_targets, sum_over_world

GetMicroBatch = Callable[[int], MicroBatch]
_EVALUATED_AT_ONCE = 64  # micro-batches of each data rank between two looks at the stop flag


@dataclass
class StepMetrics:
    """What one step gave, the same on every rank.

    losses: the objective's means, by name, "loss" first. total_loss: what the gradient is of, the
    weighted sum of these and the layers' balance. balance: mean sequence balance over sequences and
    MoE layers, 1.0 at best. loads: by MoE layer, tokens sent to each expert. recipe: what the step
    was made with. stop: whether any rank was asked to stop. updated: whether the step has changed
    the weights. not_finite: what was not finite, and where it was seen, or "".
    """

    losses: dict[str, float]
    total_loss: float
    balance: float
    loads: dict[str, list[float]]
    gradient_norm: float
    recipe: StepRecipe
    stop: bool
    updated: bool = True
    not_finite: str = ""

    @property
    def loss(self) -> float:
        return self.losses["loss"]

    @property
    def load_max(self) -> float:
        """The largest load of an expert over the mean load, on the worst MoE layer."""
        ratios = (max(loads) * len(loads) / sum(loads) for loads in self.loads.values())
        return max(ratios, default=1.0)

    @property
    def load_unused(self) -> float:
        """The share of experts, of all MoE layers, that no token chose."""
        every = [load for loads in self.loads.values() for load in loads]
        return every.count(0.0) / len(every) if every else 0.0


@dataclass
class Trainer:
    """Runs steps on a layout."""

    layout: Layout
    recorder: Recorder = field(default_factory=Silence)
    recipe: Recipe = field(init=False)
    executors: dict[int, Executor] = field(init=False)

    def __post_init__(self) -> None:
        """All executors are made now: no step is the first to find that a table does not work."""
        layout = self.layout
        self.recipe = Recipe(layout.config)
        overlap = layout.config.pipeline.overlap
        self.executors = {
            count: layout.training_executor(count, overlap, self.recorder)
            for count in self.recipe.micro_batches
        }
        for executor in self.executors.values():
            executor.on_completed = layout.gradients.completed

    def set_overlap(self, on: bool) -> None:
        """Run the passes of overlapped pairs interleaved from now on, or one after the other."""
        for executor in self.executors.values():
            executor.overlap = on

    def step(
        self,
        progress: Progress,
        micro_batch: GetMicroBatch,
        stop: bool = False,
        accepts: Callable[[float], bool] = lambda loss: True,
    ) -> StepMetrics:
        """The optimizer step after `progress`. micro_batch(m): the m-th of this data rank.
        accepts(loss): whether a step with this loss is to be taken, the same on every rank.

        A step that is not accepted, or whose loss or gradient is not finite, changes nothing.
        """
        layout, recipe = self.layout, self.recipe.at(progress)
        batch = self.accumulate(progress, micro_batch, stop)
        sequences, layers = recipe.sequences, moe_layers(layout.config.model)
        weights = layout.loss_weights(recipe, batch.targets)
        losses = layout.objective.means(batch.losses, batch.targets)
        not_finite = self._not_finite(batch)
        updated = not not_finite and accepts(losses["loss"])
        if updated:
            self.recorder.note("update of the weights")
            update_weights(layout.optimizer, layout.average, batch.norm, recipe.learning_rate)
            self._move_biases(batch.loads_LE, recipe.bias_gamma)
        return StepMetrics(
            losses=losses,
            total_loss=sum(weights[name] * value for name, value in batch.losses.items()),
            balance=batch.losses[BALANCE] / sequences / max(1, len(layers)),
            loads=dict(zip(map(layer_name, layers), batch.loads_LE.tolist())),
            gradient_norm=float(batch.norm),
            recipe=recipe,
            stop=batch.stop,
            updated=updated,
            not_finite=not_finite,
        )

    def accumulate(
        self, progress: Progress, micro_batch: GetMicroBatch, stop: bool = False
    ) -> BatchTotals:
        """Gradients of the global batch after `progress`, summed over their copies."""
        optimizer, recipe = self.layout.optimizer, self.recipe.at(progress)
        optimizer.zero()
        micro_batch, targets = self._targets(recipe, micro_batch)
        weights = self.layout.loss_weights(recipe, targets)
        result = self._run(self.executors[recipe.micro_batches], micro_batch, weights)
        self.recorder.note("sum of the gradients over their copies")
        square = optimizer.reduce()
        self.recorder.note("sum of the losses, and of the norm, over the world")
        return replace(sum_over_world(self.layout, result, stop, square), targets=targets)

    def _targets(
        self, recipe: StepRecipe, micro_batch: GetMicroBatch
    ) -> tuple[GetMicroBatch, Mapping[str, int]]:
        """Of each loss in the global batch; where sequences vary, the micro-batches are read for
        it, once. Collective then."""
        objective = self.layout.objective
        if not objective.varies:
            return micro_batch, objective.targets(recipe.sequences)
        self.recorder.note("sum of the targets over the world")
        read = [micro_batch(number) for number in range(recipe.micro_batches)]
        return read.__getitem__, sum_of_targets(self.layout, [objective.count(m) for m in read])

    def evaluate(
        self, held_out: MicroBatch, asked: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The objective's means over N held-out sequences, fields [N, ...]; "loss" first.

        None once asked() has said on any rank that it is to stop: on all ranks, soon after.
        """
        layout = self.layout
        sequences, objective = len(next(iter(held_out.values()))), layout.objective
        targets = objective.count(held_out) if objective.varies else objective.targets(sequences)
        row = layout.mesh.parts * layout.sequences  # one micro-batch of every part
        held_out = _padded(held_out, layout.objective.padding, -sequences % row)
        at_once = _EVALUATED_AT_ONCE * row
        sums: dict[str, float] = {}
        for first in range(0, sequences, at_once):
            chunk = {name: value[first : first + at_once] for name, value in held_out.items()}
            totals = self._evaluate(chunk, asked())
            if totals.stop:
                return None
            for name, value in totals.losses.items():
                sums[name] = sums.get(name, 0.0) + value
        return objective.means(sums, targets)

    def _evaluate(self, held_out: MicroBatch, stop: bool) -> BatchTotals:
        """Forward passes over sequences that divide into micro-batches of all data ranks."""
        layout = self.layout
        mine = {k: v.chunk(layout.mesh.parts)[layout.batch_part] for k, v in held_out.items()}
        parts = {name: value.split(layout.sequences) for name, value in mine.items()}
        micro_batches = len(next(iter(parts.values())))
        executor = layout.forward_executor(layout.objective, micro_batches, self.recorder)
        result = self._run(executor, lambda m: {name: part[m] for name, part in parts.items()})
        self.recorder.note("sum of the losses over the world")
        return sum_over_world(self.layout, result, stop)

    def _run(
        self,
        executor: Executor,
        micro_batch: GetMicroBatch,
        weights: Mapping[str, float] | None = None,
    ) -> StepResult:
        per_flow, device = executor.schedule.micro_batches_per_flow, self.layout.device
        local = self.layout.local
        self.layout.part.options.ops.weights_changed()  # by the step before

        def on_device(flow: int, n: int) -> MicroBatch:
            return LazyMicroBatch(lambda: local(micro_batch(flow * per_flow + n)), device)

        return executor.run(on_device, weights)

    def _move_biases(self, loads_LE: Tensor, gamma: float) -> None:
        biases = dict(named_biases(self.layout.part))
        model = self.layout.config.model
        for row, layer in enumerate(moe_layers(model)):
            bias = biases.get(bias_name(layer))
            if bias is not None:
                move_bias(bias, loads_LE[row].to(bias.device), gamma)

    def _not_finite(self, batch: BatchTotals) -> str:
        """What is not finite, and which ranks have seen it; "" if all is well. Every rank comes to
        the same answer; only if it is bad do they tell each other more."""
        if all(map(math.isfinite, batch.losses.values())) and bool(torch.isfinite(batch.norm)):
            return ""
        mine = batch.not_finite_here or [
            f"gradient of {name}" for name in self.layout.gradients.not_finite()
        ]
        seen = enumerate(gather(mine))
        where = "; ".join(f"rank {rank} ({what[0]})" for rank, what in seen if what)
        return f"the loss or the gradient is not finite, seen by {where}"


def _padded(fields: MicroBatch, padding: Mapping[str, int], sequences: int) -> MicroBatch:
    """`fields` with as many more sequences, which have no target."""
    return {
        name: torch.cat([value, value.new_full((sequences, *value.shape[1:]), padding[name])])
        for name, value in fields.items()
    }
