"""A stream of a GPU that sleeps: a wait that takes no multiprocessor but one. It has not run."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.futures import Future

_TRIAL = 10_000_000  # cycles: some milliseconds


class Sleep:
    """One after the other, as collectives of a group are."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._cycles = _cycles_per_second(device)

    def after_what_is_launched(self, seconds: float, tensors: list[Tensor]) -> Future[Any]:
        """Done when the stream has slept so long, after all that has been launched before."""
        device = tensors[0].device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        future: Future[Any] = Future(devices=[device])
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(int(seconds * self._cycles))
            future.set_result(tensors)
        return future


@functools.cache
def _cycles_per_second(device: torch.device) -> float:
    """Measured: the clock that a GPU sleeps by need not be the one that it names."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda._sleep(_TRIAL)  # the first starts the kernel
        begun.record()
        torch.cuda._sleep(_TRIAL)
        ended.record()
        ended.synchronize()
    return _TRIAL / (begun.elapsed_time(ended) * 1e-3)
