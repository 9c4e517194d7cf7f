"""A slow link to measure on: a network namespace of its own, whose loopback is limited.

One queue carries the traffic of all ranks in both directions, so they share the rate. Nothing
outside the namespace is touched, and it is deleted when the measurement is over.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from parallel.errors import TandemError
from trainer.run.signals import SIGNALS

# More than a packet of the loopback (64 KB and headers), which a smaller bucket would drop.
_BURST = "256kb"
# More than senders keep under way, so that packets queue and none is dropped.
_LATENCY = "200ms"


class LinkError(TandemError):
    """A limited link cannot be made here."""

    exit_code = 2


@contextmanager
def limited_link(rate: str) -> Iterator[list[str]]:
    """The start of a command line that runs what follows it on a loopback of `rate`.

    rate: as tc writes it, such as 1gbit or 500mbit. Raises LinkError where there can be none.
    """
    problem = why_not(rate, os.geteuid(), shutil.which)
    if problem is not None:
        raise LinkError(problem)
    name = f"tandem-{os.getpid()}"
    made = False
    # A signal must not come between making the namespace and noting that it is made.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        _call("ip", "netns", "add", name)
        made = True
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _call("ip", "-n", name, "link", "set", "lo", "up")
        limit = ("tbf", "rate", rate, "burst", _BURST, "latency", _LATENCY)
        _call("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", *limit)
        yield ["ip", "netns", "exec", name]
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if made:
            _delete(name)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def why_not(rate: str, user: int, which: Callable[[str], str | None]) -> str | None:
    """Why `user` (a number; 0 is root) cannot have a link of `rate`; None if nothing is known to
    stand in the way. which: finds a program by name."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[kmg]?bit", rate):
        return f"--link-rate {rate}: a rate is a number and bit, kbit, mbit or gbit, as in 1gbit"
    if user != 0:
        return (
            "--link-rate needs root, to make a network namespace: run it with sudo, or measure "
            "without it"
        )
    for program in ("ip", "tc"):
        if which(program) is None:
            return f"--link-rate needs the program {program} (of iproute2), which is not on PATH"
    return None


def bytes_per_second(rate: str) -> float:
    """Of a rate as tc writes it. Raises LinkError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg]?)bit", rate)
    if found is None:
        raise LinkError(why_not(rate, 0, shutil.which) or rate)
    return float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2]] / 8


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LinkError(f"--link-rate cannot be set up here: {' '.join(command)}: {reason}")
    return done.stdout


def _delete(name: str) -> None:
    """End what still runs in the namespace, which is all ours, and delete it."""
    with suppress(LinkError):
        for process in _call("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
    _call("ip", "netns", "delete", name)
