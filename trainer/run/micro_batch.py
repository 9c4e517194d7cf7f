"""A micro-batch of a step, read when a stage asks for its fields; most stages do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from trainer.model.stage import MicroBatch


class LazyMicroBatch(Mapping[str, Tensor]):
    """What `read` gives, on `device`. A GPU copies it from pinned memory while the host goes on."""

    def __init__(self, read: Callable[[], MicroBatch], device: torch.device) -> None:
        self._read, self._device = read, device

    def __getitem__(self, name: str) -> Tensor:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    @cached_property
    def _fields(self) -> dict[str, Tensor]:
        return {name: self._moved(value) for name, value in self._read().items()}

    def _moved(self, value: Tensor) -> Tensor:
        pinned = value.pin_memory() if self._device.type == "cuda" else value
        return pinned.to(self._device, non_blocking=True)
