"""A parent of processes that belong together: it passes signals on, and when one fails ends all.

The processes share the parent's terminal and output. None outlives it: it kills what is left, and
if it is killed itself, they notice (startup.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from trainer.io.terminal import show_cursor
from trainer.run.exit import say
from trainer.run.signals import SIGNALS
from trainer.run.startup import SUPERVISOR

_POLL = 0.02  # seconds
# What fails speaks before it exits, so when one has failed the others have little to add.
_LAST_WORDS = 0.5
# When one has stopped as it was asked to, all have saved, but may have logs to upload.
_STOPPING = 30.0


@dataclass(frozen=True)
class Child:
    """A process to start. name: as in messages. environment: beside that of the parent.
    descriptors: open files that it gets; they are closed here once it has been started."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


def supervise(prog: str, children: Sequence[Child]) -> int:
    """Run all children to their end; the exit code, which is that of the first that failed.

    Ctrl-C, SIGTERM and SIGHUP reach every child. Each speaks for itself; only for one that was
    killed by a signal a line is written here, and the exit code is 128 + the signal. Raises OSError
    where a process cannot be started.
    """
    return _Supervision(prog).run(children)


@dataclass
class _Supervision:
    prog: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    asked: int | None = None
    code: int | None = None  # of the first that failed

    def run(self, children: Sequence[Child]) -> int:
        with self._passing_signals_on():
            try:
                for child in children:
                    self._start(child)
                if self.asked is not None and not self.running:
                    self.code = self._failed({"": -self.asked})
                self._wait()
            finally:
                self._kill()
        return self.code or 0

    def _start(self, child: Child) -> None:
        try:
            if self.asked is None:
                self.running[child.name] = subprocess.Popen(
                    child.arguments,
                    env={**os.environ, **child.environment, SUPERVISOR: str(os.getpid())},
                    pass_fds=child.descriptors,
                    stdin=subprocess.DEVNULL,
                )
        finally:
            for descriptor in child.descriptors:
                os.close(descriptor)

    def _wait(self) -> None:
        deadline = float("inf")
        while self.running and time.monotonic() < deadline:
            ended = {name: code for name in self.running if (code := self.running[name].poll())}
            if ended and self.code is None:
                self.code = self._failed(ended)
                asked = self.code in {128 + number for number in SIGNALS}
                deadline = time.monotonic() + (_STOPPING if asked else _LAST_WORDS)
            self.running = {n: p for n, p in self.running.items() if p.returncode is None}
            time.sleep(_POLL)

    def _failed(self, ended: Mapping[str, int]) -> int:
        """The exit code for these children, the first to fail; one that was killed comes first,
        since the others may have failed because of it."""
        name, code = min(ended.items(), key=lambda end: end[1])
        if code > 0:
            return code
        number = signal.Signals(-code)
        if number == self.asked:
            say(f"{self.prog}: stopped by {number.name}")
        else:
            memory = ": the machine may have run out of memory" * (number == signal.SIGKILL)
            say(f"{self.prog}: {name} was ended by {number.name}{memory}")
        return 128 + number

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.asked = number
        for process in list(self.running.values()):
            process.send_signal(number)

    def _kill(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()
        if self.code:
            show_cursor()
