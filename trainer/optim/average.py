"""An exponential moving average of the weights, in CPU memory, updated while the next step runs.

Source: DeepSeek-V3 (arXiv 2412.19437) section 3.2.3. Each element is averaged by the one rank that
saves its master.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parallel.reduce.gradients import Gradients
from trainer.optim.optimizer import Optimizer
from trainer.optim.state import Fragment

KIND = "ema"


@dataclass(frozen=True)
class _Pair:
    """A master, which an optimizer moves, and its average. staged: on CUDA, page-locked memory that
    the master is copied to before it moves on."""

    master: Fragment
    average: Tensor
    staged: Tensor | None


class WeightAverage:
    """average <- decay x average + (1 - decay) x master, after each update of the weights.

    It starts as the weights are. The router biases are not averaged.
    """

    def __init__(self, optimizer: Optimizer, gradients: Gradients, decay: float) -> None:
        self._optimizer, self._gradients, self._decay = optimizer, gradients, decay
        masters = [f for f in optimizer.state() if f.kind == "master" and f.saves]
        self._pairs = [_pair(master) for master in masters]
        self._thread = ThreadPoolExecutor(1, "weight average")
        self._running: Future[None] | None = None
        self._copies = (
            torch.cuda.Stream() if any(p.staged is not None for p in self._pairs) else None
        )

    def update(self) -> None:
        """Start to average the weights as they are; they must not move before `wait`."""
        self.wait()
        copied = None
        if self._copies is not None:
            self._copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._copies):
                for pair in self._pairs:
                    if pair.staged is not None:
                        pair.staged.copy_(pair.master.values, non_blocking=True)
                copied = self._copies.record_event()
        self._running = self._thread.submit(self._average, copied)

    def wait(self) -> None:
        """Until the last update is done. Raises what it has raised."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def state(self) -> list[Fragment]:
        """The averages, as an optimizer has its state."""
        self.wait()
        return [replace(p.master, kind=KIND, values=p.average) for p in self._pairs]

    def restart(self) -> None:
        """Start again from the weights as they are."""
        self.wait()
        for pair in self._pairs:
            pair.average.copy_(pair.master.values)

    @contextmanager
    def as_weights(self) -> Iterator[None]:
        """Within, the model has the averages as its weights; then its own, bit for bit. Collective.

        Where what runs within raises, only masters become what they were: that needs no other rank.
        """
        self.wait()
        own = [pair.master.values.to("cpu", copy=True) for pair in self._pairs]
        self._set([pair.average for pair in self._pairs])
        try:
            yield
        except BaseException:
            for pair, values in zip(self._pairs, own, strict=True):
                pair.master.values.copy_(values)
            raise
        self._set(own)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for pair, new in zip(self._pairs, values, strict=True):
            pair.master.values.copy_(new)
        self._optimizer.loaded(self._optimizer.updates)
        self._gradients.take_values_of_first()

    @torch.no_grad()
    def _average(self, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        for pair in self._pairs:
            now = pair.master.values if pair.staged is None else pair.staged
            pair.average.lerp_(now, 1 - self._decay)


def update_weights(
    optimizer: Optimizer, average: WeightAverage | None, norm: Tensor, learning_rate: float
) -> None:
    """The optimizer's step; the average, if there is one, follows while the next step runs."""
    if average is not None:
        average.wait()  # it reads the weights that there are
    optimizer.step(norm, learning_rate)
    if average is not None:
        average.update()


def _pair(master: Fragment) -> _Pair:
    values = master.values.detach()
    average = values.to("cpu", copy=True)
    staged = torch.empty_like(average, pin_memory=True) if values.is_cuda else None
    return _Pair(replace(master, values=values), average, staged)
