"""Two exchanges one after the other, as one: the second sends what follows from the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parallel.expert.all_to_all import InFlight


@dataclass
class Chained:
    """between: starts the second from the results of the first. second: None before. first,
    arrived: kept until the wait, since streams read what they hold."""

    first: InFlight | None
    between: Callable[..., InFlight]
    second: InFlight | None = None
    arrived: tuple[Tensor, ...] = ()
    _callbacks: list[Callable[[], None]] = field(default_factory=list)

    def go_on(self) -> None:
        """Wait for the first, and start the second."""
        assert self.first is not None
        self.first.follow()
        self.arrived = self.first.results()
        self.second = self.between(*self.arrived)
        for callback in self._callbacks:
            self.second.on_completion(callback)

    def wait(self) -> None:
        if self.second is None:
            self.go_on()
        assert self.second is not None
        self.second.wait()
        self.first, self.arrived = None, ()

    def results(self) -> tuple[Tensor, ...]:
        assert self.second is not None  # the wait is over
        return self.second.results()

    def follow(self) -> None:
        """Make the current stream of a GPU wait until both are done."""
        if self.second is not None:
            self.second.follow()

    def on_completion(self, callback: Callable[[], None]) -> None:
        """Call back, from another thread, when the second has completed."""
        if self.second is None:
            self._callbacks.append(callback)
        else:
            self.second.on_completion(callback)


def start_chained(
    first: InFlight, between: Callable[..., InFlight], stream: torch.cuda.Stream | None
) -> Chained:
    """first: has been started. stream: starts the second without the host; without one, whoever
    waits does."""
    chained = Chained(first, between)
    if stream is not None:
        # Its memory is used again once the stream that computes has done with it.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            chained.go_on()
    return chained
