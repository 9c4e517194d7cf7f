"""Live bytes of part of a run in one process: on a GPU that is pretended, or really on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.dry.device import pretended_gpu
from trainer.dry.memory import LiveBytes
from trainer.dry.observer import Observer
from trainer.dry.record import Record
from trainer.dry.routing import BalancedRouting
from trainer.dry.values import tensors_in
from trainer.dry.world import fake_world


def device_of(config: Config) -> torch.device:
    """What a plan counts on: the CPU where run.device says so, else a GPU that is pretended."""
    return torch.device("cpu") if config.run.device == "cpu" else pretended_gpu()


@contextmanager
def observed(
    config: Config, rank: int, world: int, where: Callable[[], object] = lambda: None
) -> Iterator[LiveBytes]:
    """Within, what this process does is that of rank `rank` of `world` ranks; collectives are
    answered as in a dry run. Gives the bytes that live. where: as LiveBytes asks for it."""
    moe, device = config.model.moe, device_of(config)
    routing = BalancedRouting(moe.experts, moe.experts // mesh_of(config).expert, moe.top_k)
    kind = _OnCPU if device.type == "cpu" else _OnGPU
    observer = kind(Record(rank, world, 1), device, routing)
    observer.memory = LiveBytes(where)
    with fake_world(rank, world, device), observer:
        yield observer.memory


class _OnGPU(Observer):
    """Sees at once what recomputation frees, too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.memory.look()
        return super().__torch_dispatch__(func, types, args, kwargs)


class _OnCPU(Observer):
    """Everything is computed, but for the choice of experts."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.memory.look()
        if func.namespace == "c10d":
            return self._collective(func, args)
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.topk.default and self.routing.decides(*args[:2]):
            out[1].copy_(self.routing.experts_of(len(args[0])))
        tensors_in(out, self.memory.see)
        return out
