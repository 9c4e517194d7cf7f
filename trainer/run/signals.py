"""Ctrl-C, SIGTERM and SIGHUP: stop at the end of the step, or, if that never comes, soon anyway.

The main thread may be deep inside a collective that never returns, where Python runs no signal
handler. So a thread of its own waits for the signals.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from trainer.errors import Stopped
from trainer.io.terminal import show_cursor

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNWINDING = 15.0  # seconds to undo what was started before the first step
_IMPATIENT = 3.0  # seconds after which a second signal means to exit at once


class StopRequest:
    """Whether this process has been asked to stop. Make it before any other thread is started."""

    def __init__(self, prog: str, grace: float) -> None:
        """prog: who speaks. grace: seconds from the signal to a forced exit; less than torchrun
        waits. Signals that are ignored, as under nohup, stay so."""
        self.signal: int | None = None
        self._prog = prog
        self._grace = grace
        self._asked = threading.Event()
        self._training = threading.Event()
        self._reached = threading.Event()
        self._held_back = self._interrupted = False
        self._signals = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)  # threads started now inherit it
        for number in self._signals:
            signal.signal(number, self._interrupt)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def training(self) -> None:
        """From now on there is something to save: a signal no longer interrupts what is running."""
        self._training.set()

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Within this context a signal interrupts nothing; it does so at the end. For work that
        must be complete before it can be undone. Raises Stopped."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
        self.interrupt_if_asked()

    def interrupt_if_asked(self) -> None:
        """Raise Stopped, but only once, if there has been a signal and nothing is to be saved."""
        if self.signal is None or self._training.is_set() or self._interrupted:
            return
        self._interrupted = True
        raise Stopped(self.signal, _stopped(self.signal))

    def reached(self) -> None:
        """The step has ended: saving may take as long as it takes."""
        self._reached.set()

    def wait(self, seconds: float) -> bool:
        """Wait for `seconds`, or less if asked to stop meanwhile; returns whether it was."""
        return self._asked.wait(seconds)

    def _watch(self) -> None:
        number = signal.Signals(signal.sigwait(self._signals))
        self.signal = number
        self._asked.set()
        if not self._training.is_set():
            _thread.interrupt_main(number)  # runs _interrupt there
            self._wait_or_impatience(self._training.is_set, _UNWINDING)
            if not self._training.is_set():
                _leave(number, f"{self._prog}: {_stopped(number)}")
        self._wait_or_impatience(lambda: False, self._grace)
        _leave(number, f"{self._prog}: {number.name}: the step did not end in time; nothing saved")

    def _wait_or_impatience(self, over: Callable[[], bool], seconds: float) -> None:
        """Wait for `seconds`, for as long as it takes once `reached`, or until `over`."""
        start = time.monotonic()
        while not over() and (self._reached.is_set() or time.monotonic() - start < seconds):
            again = signal.sigtimedwait(self._signals, 0.2)
            # On Ctrl-C the terminal and the parent process both send one: only a later one means
            # impatience.
            if again is not None and time.monotonic() - start > _IMPATIENT:
                break

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        """In the main thread: what was started is undone on the way out."""
        if not self._held_back:
            self.interrupt_if_asked()


def _stopped(number: int) -> str:
    return f"stopped by {signal.Signals(number).name} before there was anything to save"


def _leave(number: int, line: str) -> None:
    """Exit at once, whatever the other threads do; rank 0 says why."""
    show_cursor()
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # past the lock of the stream, which may be held
            os.write(sys.stderr.fileno(), f"{line}\n".encode())
    os._exit(128 + number)
