"""Ctrl-C and SIGTERM: stop at the end of the step, or, if that never comes, soon anyway.

The main thread may be deep inside a collective that never returns, where Python runs no signal
handler. So a thread of its own waits for the signals.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process has been asked to stop. Make it before any other thread is started."""

    def __init__(self, grace: float = 20.0) -> None:
        """grace: seconds from the signal to a forced exit; less than the 30 torchrun waits."""
        self.signal: int | None = None
        self._grace = grace
        self._asked = threading.Event()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # threads started from now inherit it
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or less if asked to stop meanwhile; whether it was."""
        return self._asked.wait(seconds)

    def _watch(self) -> None:
        self.signal = signal.sigwait(SIGNALS)
        self._asked.set()
        signal.sigtimedwait(SIGNALS, self._grace)  # a second signal does not wait
        name = signal.Signals(self.signal).name
        print(f"{name}: the step did not end in time; exiting at once", file=sys.stderr, flush=True)
        os._exit(128 + self.signal)
