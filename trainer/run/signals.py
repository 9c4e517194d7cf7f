"""Ctrl-C, SIGTERM and SIGHUP: stop at the end of the step, or, if that never comes, soon anyway.

The main thread may be deep inside a collective that never returns, where Python runs no signal
handler. So a thread of its own waits for the signals.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IMPATIENT = 3.0  # seconds after which a second signal means: at once


class StopRequest:
    """Whether this process has been asked to stop. Make it before any other thread is started."""

    def __init__(self, grace: float = 20.0) -> None:
        """grace: seconds from the signal to a forced exit; less than the 30 torchrun waits."""
        self.signal: int | None = None
        self._grace = grace
        self._asked = threading.Event()
        self._reached = threading.Event()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # threads started from now inherit it
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def reached(self) -> None:
        """The step has ended: saving may take as long as it takes."""
        self._reached.set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or less if asked to stop meanwhile; whether it was."""
        return self._asked.wait(seconds)

    def _watch(self) -> None:
        self.signal = signal.sigwait(SIGNALS)
        self._asked.set()
        begin = time.monotonic()
        while self._reached.is_set() or time.monotonic() - begin < self._grace:
            again = signal.sigtimedwait(SIGNALS, 0.2)
            # On Ctrl-C the terminal and torchrun both send one: only a later one is impatience.
            if again is not None and time.monotonic() - begin > _IMPATIENT:
                break
        name = signal.Signals(self.signal).name
        line = f"{name}: what is running did not end in time; exiting at once, nothing saved"
        print(line, file=sys.stderr, flush=True)
        os._exit(128 + self.signal)
