"""What a tape needs of a collective: start it, wait for it, and know its reverse."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Pending(Protocol):
    """A collective in flight."""

    def wait(self) -> tuple[Tensor, ...]:
        """Block (on CUDA: make the current stream wait) until it is done; its results."""


class Collective(Protocol):
    """A linear exchange of tensors between ranks, such as an all-to-all with given splits."""

    def start(self, *tensors: Tensor) -> Pending:
        """Start without waiting. The tensors must not change until the wait is over."""

    def reversed(self) -> Collective:
        """The exchange that carries gradients back: its transpose."""
