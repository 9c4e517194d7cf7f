"""A training step and an evaluation, on one rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.expert.router import move_bias
from parallel.pipeline.executor import Executor, StepResult
from parallel.ranks.together import gather
from parallel.tape.recorder import Recorder
from trainer.build.layout import Layout
from trainer.errors import RunError
from trainer.model.named import BIAS, named_biases, released_name
from trainer.model.stage import PADDING
from trainer.optim.adamw import make_optimizer, set_learning_rate
from trainer.optim.learning_rate import learning_rate

GetMicroBatch = Callable[[int], Tensor]


class NonFiniteError(RunError):
    """The loss or the gradient norm is not a number: training on would destroy the weights."""


@dataclass
class StepMetrics:
    """What one step gave, the same on every rank.

    loss, mtp_losses: mean nats a target token. balance: mean sequence balance over sequences and
    MoE layers, 1.0 at best. load_max, load_unused: over MoE layers, the largest load of an expert
    over the mean load, and the share of experts that no token chose. load_shares: by MoE layer, the
    share of each expert in the tokens sent to experts. stop: whether any rank was asked to stop.
    """

    loss: float
    mtp_losses: list[float]
    balance: float
    load_max: float
    load_unused: float
    load_shares: list[list[float]]
    gradient_norm: float
    learning_rate: float
    stop: bool


@dataclass(frozen=True)
class BatchTotals:
    """Sums over the global batch.

    losses: by name. loads_LE: tokens sent to each expert of each MoE layer, float64. stop: whether
    any rank was asked to stop. not_finite_here: losses that were not finite on this rank.
    """

    losses: dict[str, float]
    loads_LE: Tensor
    stop: bool
    not_finite_here: list[str]


@dataclass
class Trainer:
    """Runs steps on a layout."""

    layout: Layout
    recorder: Recorder | None = None
    optimizer: torch.optim.AdamW = field(init=False)
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        config = self.layout.config
        self.optimizer = make_optimizer(self.layout.part.parameters(), config.optimizer)
        self.executor = self.layout.trainer(config.pipeline.overlap, self.recorder)

    def step(self, step: int, micro_batch: GetMicroBatch, stop: bool = False) -> StepMetrics:
        """One optimizer step. micro_batch(m): tokens [B, S + 1 + MTP depth] of this data rank.

        Raises NonFiniteError on every rank, before any weight is changed.
        """
        config, gradients = self.layout.config, self.layout.gradients
        batch = self.accumulate(micro_batch, stop)
        norm = gradients.norm()
        self._require_finite(step, batch, norm)
        gradients.clip(norm, config.optimizer.clip)
        rate = learning_rate(step, config.run.steps, config.optimizer)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self._move_biases(batch.loads_LE)
        return self._metrics(batch, float(norm), rate)

    def accumulate(self, micro_batch: GetMicroBatch, stop: bool = False) -> BatchTotals:
        """Gradients of one global batch, summed over their copies, in the parameters' `.grad`."""
        gradients = self.layout.gradients
        gradients.zero()
        result = self._run(self.executor, micro_batch)
        gradients.reduce()
        return self._reduce(result, stop)

    def evaluate(self, windows: Tensor) -> float:
        """Mean cross-entropy, in nats a token, of windows [N, S + 1 + MTP depth]."""
        layout = self.layout
        mesh, sequences = layout.mesh, layout.sequences
        micro_batches = math.ceil(len(windows) / (mesh.data * sequences))
        padding = mesh.data * sequences * micro_batches - len(windows)
        windows = torch.nn.functional.pad(windows, (0, 0, 0, padding), value=PADDING)
        mine = windows.chunk(mesh.data)[mesh.data_rank(layout.process.rank)]
        parts = mine.split(sequences)
        executor = layout.evaluator(micro_batches)
        totals = self._reduce(self._run(executor, lambda m: parts[m]), stop=False)
        tokens = (len(windows) - padding) * layout.config.data.sequence_length
        return totals.losses["loss"] / tokens

    def _run(self, executor: Executor, micro_batch: GetMicroBatch) -> StepResult:
        per_flow = executor.schedule.micro_batches_per_flow
        device = self.layout.device
        return executor.run(lambda flow, n: micro_batch(flow * per_flow + n).to(device))

    def _reduce(self, result: StepResult, stop: bool) -> BatchTotals:
        """Sum losses and loads over the world: each was counted by one rank only."""
        model = self.layout.config.model
        names = ["loss", *(f"mtp_{d + 1}" for d in range(model.mtp.depth)), "balance"]
        layers = self._moe_layers()
        head = [float(result.losses.get(name, 0.0)) for name in names] + [float(stop)]
        flat = torch.zeros(len(head) + len(layers) * model.moe.experts, dtype=torch.float64)
        flat[: len(head)] = torch.tensor(head, dtype=torch.float64)
        loads_LE = flat[len(head) :].view(len(layers), model.moe.experts)
        for row, layer in enumerate(layers):
            if layer in result.tallies:
                loads_LE[row] = result.tallies[layer].to(flat)
        if dist.is_initialized():
            dist.all_reduce(flat)
        sums = dict(zip(names, flat.tolist()))
        seen = [name for name in names if not math.isfinite(head[names.index(name)])]
        return BatchTotals(sums, loads_LE, bool(flat[len(names)] > 0), seen)

    def _moe_layers(self) -> list[str]:
        model = self.layout.config.model
        return [
            f"layers.{index}" for index in range(model.dense_layers, model.layers + model.mtp.depth)
        ]

    def _move_biases(self, loads_LE: Tensor) -> None:
        biases = dict(named_biases(self.layout.part))
        for row, layer in enumerate(self._moe_layers()):
            bias = biases.get(released_name(f"{layer}.mlp.gate.{BIAS}"))
            if bias is not None:
                gamma = self.layout.config.model.moe.bias_gamma
                move_bias(bias, loads_LE[row].to(bias.device), gamma)

    def _require_finite(self, step: int, batch: BatchTotals, norm: Tensor) -> None:
        """Every rank comes to the same answer; on the way out they tell each other who saw it."""
        if all(map(math.isfinite, batch.losses.values())) and bool(torch.isfinite(norm)):
            return
        mine = batch.not_finite_here or [
            f"gradient of {name}"
            for name, parameter in self.layout.part.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        seen = enumerate(gather(mine))
        where = "; ".join(f"rank {rank} ({what[0]})" for rank, what in seen if what)
        raise NonFiniteError(
            f"step {step}: the loss or the gradient is not finite, seen by {where}: lower "
            "optimizer.lr, or look at the data of this step; no weight was changed by it"
        )

    def _metrics(self, batch: BatchTotals, norm: float, rate: float) -> StepMetrics:
        totals, loads_LE = batch.losses, batch.loads_LE
        config = self.layout.config
        sequences = config.data.global_batch
        tokens = sequences * config.data.sequence_length
        mean_L = loads_LE.mean(1)
        return StepMetrics(
            loss=totals["loss"] / tokens,
            mtp_losses=[
                totals[f"mtp_{depth + 1}"] / tokens for depth in range(config.model.mtp.depth)
            ],
            balance=totals["balance"] / (sequences * max(1, len(loads_LE))),
            load_max=float((loads_LE.amax(1) / mean_L).max()) if len(loads_LE) else 1.0,
            load_unused=float((loads_LE == 0).double().mean()) if len(loads_LE) else 0.0,
            load_shares=(loads_LE / loads_LE.sum(1, keepdim=True)).tolist(),
            gradient_norm=norm,
            learning_rate=rate,
            stop=batch.stop,
        )
