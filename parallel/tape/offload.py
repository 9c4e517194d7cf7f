"""Offload: what a computation saves for its backward waits on the host.

A GPU copies beside the computation, in both directions: to the host as soon as something is saved,
and back when the backward says that it will come here, which is while the exchange before it is in
flight. Numbers stay the same to the bit.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Offloaded:
    """What one computation has saved: its matrices, of floating-point numbers. Smaller things stay
    where they are."""

    def __init__(self) -> None:
        self._away: list[_Away] = []

    def saving(self) -> AbstractContextManager[object]:
        """Within, what is saved goes to the host."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def fetch(self) -> None:
        """Start to bring all of it back."""
        away, self._away = self._away, []
        for each in away:
            each.fetch()

    def _pack(self, tensor: Tensor) -> Tensor | _Away:
        if tensor.ndim < 2 or not tensor.is_floating_point():
            return tensor
        self._away.append(_Away(tensor))
        return self._away[-1]


def _unpack(packed: Tensor | _Away) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed.arrived()


class _Away:
    """One tensor that is on the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        self._back: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        with _beside(tensor.device):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._host: Tensor | None = host.copy_(tensor, non_blocking=True)
        if tensor.is_cuda:
            tensor.record_stream(_copies(tensor.device))  # its memory is free after the copy

    def fetch(self) -> None:
        """Start the copy back."""
        assert self._host is not None  # once
        into = torch.empty_like(self._host, device=self._device)
        with _beside(self._device):
            self._back = into.copy_(self._host, non_blocking=True)
            if into.is_cuda:
                self._copied = torch.cuda.current_stream().record_event()
        self._host = None

    def arrived(self) -> Tensor:
        """The tensor, for what is launched from now on."""
        assert self._back is not None  # fetched
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
        return self._back


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """Within, a GPU works on a stream for copies, after all that has been launched."""
    if device.type != "cuda":
        return nullcontext()
    copies = _copies(device)
    copies.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(copies)


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
