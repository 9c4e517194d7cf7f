"""A stage that sleeps instead of computing, so that many ranks fit few cores.

It is a stage like any other: its regions, exchanges and deferred weight gradients are the tape's,
its tensors travel between ranks, and the executor cannot tell the difference.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.schedule.table import Action, Schedule
from parallel.study.costs import CostModel, Costs
from parallel.tape.passes import Pass
from parallel.tape.recorder import is_paired
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients

SHAPE = (4, 8)
LOSS = "sum"


class StageTimes(NamedTuple):
    """How long one stage sleeps in F, I and W, in seconds, and in a pair: all times pair_factor."""

    forward: float
    input_grad: float
    weight_grad: float
    pair_factor: float = 1.0


def stage_times(
    schedule: Schedule, costs: CostModel, rank: int
) -> dict[tuple[int, int], StageTimes]:
    """The times of the stages of `rank`, by (flow, stage). costs: in seconds."""
    made_out, factor = Costs(costs, schedule), costs.pair_factor
    factor = factor if isinstance(factor, int | float) else factor[rank]
    return {
        (flow, stage): StageTimes(
            made_out.duration(rank, Action("F", flow, stage, 0)),
            made_out.duration(rank, Action("I", flow, stage, 0)),
            made_out.duration(rank, Action("W", flow, stage, 0)),
            factor,
        )
        for flow, stage in schedule.stages_of(rank)
    }


@dataclass(frozen=True)
class _Here:
    """An exchange with nobody."""

    copies = False

    def start(self, *tensors: Tensor) -> _Arrived:
        return _Arrived(tensors)

    def reversed(self) -> _Here:
        return self


@dataclass(frozen=True)
class _Arrived:
    tensors: tuple[Tensor, ...]

    def wait(self) -> None:
        return None

    def results(self) -> tuple[Tensor, ...]:
        return self.tensors


@dataclass(frozen=True)
class _Sleeper:
    """The sleep of one micro-batch on one stage."""

    tape: Tape
    times: StageTimes

    def work(self, x: Tensor) -> Tensor:
        self.sleep(self.times.forward)
        return _Work.apply(x, self)

    def sleep(self, seconds: float) -> None:
        # Two sleeps of one thread do not overlap, so a pair's gain is given to each of its parts.
        paired = is_paired(self.tape.label)
        time.sleep(seconds * self.times.pair_factor if paired else seconds)


class _Work(torch.autograd.Function):
    """The identity. Its backward sleeps for the input gradient and queues the weight gradient."""

    @staticmethod
    def forward(ctx, x, sleeper):  # type: ignore[no-untyped-def]
        ctx.sleeper = sleeper
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        sleeper = ctx.sleeper
        sleeper.sleep(sleeper.times.input_grad)
        sleeper.tape.deferred.defer(lambda: sleeper.sleep(sleeper.times.weight_grad))
        return grad.clone(), None


@dataclass(frozen=True)
class SleepingStage:
    """One stage of the identity that sleeps for `times`.

    first, last: of the model. exchanges: as in an MoE layer, all that it does lies between a
    dispatch and a combine, and the weight gradient runs after the reverse dispatch: the input
    gradient leaves last, as the simulation has it. Without, as in a dense layer, it leaves before
    the weight gradient runs. The micro-batch is a number, which the tensors carry: the loss is
    their sum.
    """

    times: StageTimes
    first: bool
    last: bool
    exchanges: bool = True
    deferred: WeightGradients = field(default_factory=WeightGradients)

    def forward(self, tape: Tape, x: Tensor | None, micro_batch: Any) -> Pass[Tensor | None]:
        if self.first:
            x = torch.full(SHAPE, float(micro_batch), requires_grad=tape.training)
        assert x is not None
        if self.exchanges:
            (x,) = yield from tape.exchange("dispatch", _Here(), x)
        y = _Sleeper(tape, self.times).work(x)
        if self.exchanges:
            (y,) = yield from tape.exchange("combine", _Here(), y)
        if not self.last:
            return y
        tape.add_loss(LOSS, y.sum())
        return None


def sleeping_stages(
    schedule: Schedule, costs: CostModel, rank: int, exchanges: bool = True
) -> dict[tuple[int, int], SleepingStage]:
    """The stages of `rank`. costs: in seconds."""
    last = schedule.stages - 1
    return {
        (flow, stage): SleepingStage(times, stage == 0, stage == last, exchanges)
        for (flow, stage), times in stage_times(schedule, costs, rank).items()
    }
