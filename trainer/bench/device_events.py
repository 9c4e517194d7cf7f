"""What happened inside the passes on a GPU: the events of parallel/tape/recorder.py, timed on the
streams rather than by the host, which sees launches and not kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from parallel.tape.recorder import Event, What
from trainer.bench.stamps import Followed, Stamp, seconds_between


class _Marked(NamedTuple):
    label: str
    what: What
    name: str
    start: Stamp
    end: Stamp


class DeviceEventLog:
    """Keeps the events of one step. now: `stamp` of the device. arrival: when a collective is done.

    A span lasts from when the stream that computes comes to it until it has done what was launched
    in it; a wait, for as long as that stream stands still.
    """

    def __init__(self, now: Callable[[], Stamp], arrival: Callable[[Followed], Stamp]) -> None:
        self._now, self._arrival = now, arrival
        self._marked: list[_Marked] = []
        self._first: Stamp | None = None

    def start(self) -> None:
        """A step begins."""
        self._marked.clear()
        self._first = self._now()

    def note(self, doing: str) -> None:
        return None  # events carry their own labels

    def span(
        self, label: str, what: What, name: str, layer: str = ""
    ) -> AbstractContextManager[None]:
        # A flight has the start of its collective.
        return nullcontext() if what == "start" else self._span(label, what, name)

    @contextmanager
    def _span(self, label: str, what: What, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._marked.append(_Marked(label, what, name, start, self._now()))

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        if isinstance(pending, Followed):
            begun = self._now()
            self._marked.append(_Marked(label, "flight", name, begun, self._arrival(pending)))

    def events(self, started: float) -> list[Event]:
        """Of the last step, which has ended on the GPU too. started: by the host's clock, by which
        the events are."""
        first = self._first
        assert first is not None

        def at(when: Stamp) -> float:
            return started + seconds_between(first, when)

        return [
            Event(label, what, name, at(start), at(end))
            for label, what, name, start, end in self._marked
        ]
