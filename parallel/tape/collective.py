"""What a tape needs of a collective: start it, wait for it, and know its reverse."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Pending(Protocol):
    """A collective in flight."""

    def wait(self) -> None:
        """Block (on CUDA: make the current stream wait) until it is done."""

    def results(self) -> tuple[Tensor, ...]:
        """What has arrived, after the wait; once. May compute."""


class Startable(Protocol):
    """An exchange of tensors between ranks."""

    def start(self, *tensors: Tensor) -> Pending:
        """Start without waiting. The tensors must not change until the wait is over."""


class Collective(Startable, Protocol):
    """A linear one, such as an all-to-all with given splits.

    copies: whether, once it has started, it no longer reads the memory of what it was given.
    """

    @property
    def copies(self) -> bool: ...

    def reversed(self) -> Collective:
        """The exchange that carries gradients back: its transpose."""
