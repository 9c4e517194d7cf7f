"""What one step counts over all ranks, in one collective: losses, loads of the experts, the norm of
the gradients, and whether a rank was asked to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.pipeline.executor import StepResult
from trainer.build.layout import Layout
from trainer.model.moe import BALANCE
from trainer.model.partition import layer_name, moe_layers


@dataclass(frozen=True)
class BatchTotals:
    """Sums over the world, the same on every rank; tensors are on the CPU.

    losses: by name. loads_LE: tokens sent to each expert of each MoE layer, float64. norm: the
    2-norm of the gradients, float64; 0 where there are none. stop: whether any rank was asked to
    stop. not_finite_here: losses that were not finite on this rank. targets: of each loss, in a
    training step.
    """

    losses: dict[str, float]
    loads_LE: Tensor
    norm: Tensor
    stop: bool
    not_finite_here: list[str]
    targets: Mapping[str, int] = field(default_factory=dict)


def sum_over_world(
    layout: Layout, result: StepResult, stop: bool, square: Tensor | None = None
) -> BatchTotals:
    """Sum over the world what each rank has counted of a batch: its losses and loads, which one
    rank each has counted. square: this rank's part of the square of the norm, if there are
    gradients. Collective."""
    model, names = layout.config.model, [*layout.objective.losses, BALANCE]
    layers, zero = moe_layers(model), torch.zeros((), dtype=torch.float64, device=layout.device)
    none_E = zero.expand(model.moe.experts)
    counted = [zero if square is None else square, zero + stop]
    counted += [result.losses.get(name, zero) for name in names]
    loads = [result.tallies.get(layer_name(layer), none_E) for layer in layers]
    mine = torch.cat([torch.stack([value.to(zero) for value in counted]), *loads])
    flat = mine.clone()
    if dist.is_initialized():
        dist.all_reduce(flat)
    flat, mine = torch.stack([flat, mine]).cpu()  # the step's one wait for these numbers
    first = len(counted) - len(names)
    own = zip(names, mine[first:].tolist())
    return BatchTotals(
        losses=dict(zip(names, flat[first:].tolist())),
        loads_LE=flat[len(counted) :].view(len(layers), model.moe.experts),
        norm=flat[0].sqrt(),
        stop=bool(flat[1] > 0),
        not_finite_here=[name for name, value in own if not math.isfinite(value)],
    )


def sum_of_targets(layout: Layout, counted: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Over the micro-batches of all data ranks; a pipeline's ranks have the same. Collective."""
    names = layout.objective.losses
    sums = [sum(count[name] for count in counted) for name in names]
    total = torch.tensor(sums, dtype=torch.int64, device=layout.device)
    if dist.is_initialized():
        dist.all_reduce(total)
        total //= layout.mesh.pipeline
    return dict(zip(names, total.tolist()))
