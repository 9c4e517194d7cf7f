"""One rank of the comparison: the same sleep in torch.distributed.pipelining.

torch gets its best case. Its own split of a backward into I and W by autograd leaves the first
stage's I to the W, so the weight gradient sleeps in a `dw_builder`, the hook that torch has for
deferred weight gradients: I, W and the full backward sleep exactly what they cost on every stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleZBVZeroBubble,
)

from parallel.pipeline.truth.sleeping import SHAPE, StageTimes, stage_times
from parallel.ranks.together import start_together
from parallel.schedule.table import Schedule
from parallel.study.costs import NOTHING, CostModel

CLASSES: Mapping[str, Any] = {
    "1f1b": Schedule1F1B,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


class _Work(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stage):  # type: ignore[no-untyped-def]
        ctx.stage = stage
        return x.clone()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        time.sleep(ctx.stage.times.input_grad)
        return grad.clone(), None, None


class _SleepingModule(nn.Module):
    """The identity that sleeps for `times`. The weight gives every output a graph."""

    def __init__(self, times: StageTimes) -> None:
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.times.forward)
        return _Work.apply(x, self.weight, self)

    def weight_gradient(self) -> Callable[[], None]:
        return lambda: time.sleep(self.times.weight_grad)


@dataclass
class TorchPipeline:
    """A schedule of torch.distributed.pipelining on the stages of ours with the same name."""

    schedule: Schedule
    _modules: dict[int, _SleepingModule] = field(init=False)
    _runner: Any = field(init=False)

    def __post_init__(self) -> None:
        times = stage_times(self.schedule, NOTHING, dist.get_rank())
        self._modules = {stage: _SleepingModule(t) for (_, stage), t in sorted(times.items())}
        stages = [
            PipelineStage(
                module, stage, self.schedule.stages, torch.device("cpu"),
                dw_builder=module.weight_gradient,
            )
            for stage, module in self._modules.items()
        ]  # fmt: skip
        name, count = self.schedule.name, self.schedule.micro_batches
        alone = len(stages) == 1
        self._runner = CLASSES[name](
            stages[0] if alone else stages, count, loss_fn=_sum, scale_grads=False
        )
        self._step()  # its first step connects the ranks and learns the shapes

    def execute(self, costs: CostModel) -> float:
        """Run one step; the seconds from the common start until the last rank has returned."""
        for (_, stage), times in stage_times(self.schedule, costs, dist.get_rank()).items():
            self._modules[stage].times = times
        origin = start_together()
        self._step()
        wall = torch.tensor([time.monotonic() - origin], dtype=torch.float64)
        dist.all_reduce(wall, dist.ReduceOp.MAX)
        return float(wall)

    def _step(self) -> None:
        numbers = torch.arange(float(self.schedule.micro_batches))
        batch = numbers.repeat_interleave(SHAPE[0])[:, None].expand(-1, SHAPE[1])
        first, last = 0 in self._modules, self.schedule.stages - 1 in self._modules
        self._runner.step(
            *((batch,) if first else ()),
            target=batch if last else None,
            losses=[] if last else None,
            return_outputs=False,
        )


def _sum(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()
