"""The first moments of a process, before it knows what it is to do; imports nothing slow."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from trainer.run.signals import SIGNALS

SUPERVISOR = "TANDEM_SUPERVISOR"
"""The environment variable with the process id of the parent that supervises this process."""
JOB, RESTARTS = "TANDEM_JOB", "TANDEM_RESTARTS"
"""What a supervisor that starts its ranks again calls them all, and how often it has done so."""
_TORCHRUN = "TORCHELASTIC_RUN_ID"
_PR_SET_PDEATHSIG = 1
_MALLOC = (  # environment variable, number in glibc's malloc.h, bytes
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**30),
    ("MALLOC_MMAP_THRESHOLD_", -3, 2**25),  # the most that glibc takes
)


def handle_signals(prog: str) -> None:
    """Until a command has its own way to end: signals end it in one line, as if it had never been.

    A process that a supervisor or torchrun has started gets SIGTERM when that parent dies, so that
    none trains on without one.
    """
    # Python makes a stream that was closed at the start None, which most code does not expect.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (for good)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if SUPERVISOR in os.environ or _TORCHRUN in os.environ:
        _end_with_parent()

    def stopped(number: int, _: FrameType | None) -> NoReturn:
        if os.environ.get("RANK", "0") == "0":
            line = f"{prog}: stopped by {signal.Signals(number).name} while starting\n"
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), line.encode())
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stopped)


def keep_freed_memory() -> None:
    """Let malloc keep what is freed. By default glibc gives large tensors back to the system, which
    faults in and clears every page of the next one again: 10,000 faults in a step of a model of 12
    million parameters. What is set in the environment stays."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, option, size in _MALLOC:
        if mallopt is not None and name not in os.environ:
            mallopt(option, size)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is not None and os.getppid() != int(supervisor):  # it died before we could ask
        os._exit(128 + signal.SIGTERM)
