"""What happened when, inside the passes: for tests of the overlap, and for measuring it.

Times are of the host clock, in seconds. On CUDA they are the times of the launches, not of the
kernels: use a profiler there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

What = Literal["compute", "weights", "recompute", "start", "wait", "flight"]


_PAIRED = "&"


def paired(label: str) -> str:
    """The label of a pass inside an overlapped pair."""
    return label + _PAIRED


def is_paired(label: str) -> bool:
    return label.endswith(_PAIRED)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a pass did.

    label: the pass, "F", "B", "I" or "W", as `paired` writes it inside an overlapped pair.
    what: "compute" a region, "weights" queued weight gradients, "recompute" what a region freed,
    "start" a collective, "wait" for it (the exposed time), "flight" from start to completion.
    name: of the collective, or after which one the region comes.
    """

    label: str
    what: What
    name: str
    start: float
    end: float


class Recorder(Protocol):
    """Receives events; see EventLog and Silence, and parallel/ranks/flight.py."""

    def note(self, doing: str) -> None:
        """What this rank does from now on: an item of the table, or what comes between."""

    def span(
        self, label: str, what: What, name: str, layer: str = ""
    ) -> AbstractContextManager[None]:
        """An event, for as long as the context lasts. layer: of the model, if it is one's."""

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        """A collective has been started."""


class Silence:
    """Records nothing, at no cost worth measuring."""

    def note(self, doing: str) -> None:
        return None

    def span(
        self, label: str, what: What, name: str, layer: str = ""
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        return None


@dataclass(frozen=True)
class Both:
    """Gives every event to two recorders."""

    first: Recorder
    second: Recorder

    def note(self, doing: str) -> None:
        self.first.note(doing)
        self.second.note(doing)

    @contextmanager
    def span(self, label: str, what: What, name: str, layer: str = "") -> Iterator[None]:
        with (
            self.first.span(label, what, name, layer),
            self.second.span(label, what, name, layer),
        ):
            yield

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        self.first.flight(label, name, start, pending)
        self.second.flight(label, name, start, pending)


class EventLog:
    """Keeps every event in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._flights = 0

    def note(self, doing: str) -> None:
        return None  # events carry their own labels

    @contextmanager
    def span(self, label: str, what: What, name: str, layer: str = "") -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.events.append(Event(label, what, name, start, time.perf_counter()))

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        """Note when `pending` completes, if it can tell (`on_completion(callback)`)."""
        on_completion = getattr(pending, "on_completion", None)
        if on_completion is None:
            return
        self._flights += 1
        on_completion(
            lambda: self.events.append(Event(label, "flight", name, start, time.perf_counter()))
        )

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until every flight has been noted: another thread does, a little after its wait."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if sum(event.what == "flight" for event in self.events) >= self._flights:
                return
            time.sleep(0.001)
