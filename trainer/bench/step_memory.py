"""The memory of a training step: the highest resident set of a fresh process that takes some.
Linux only."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from trainer.bench.results import Memory
from trainer.bench.ways import Way
from trainer.errors import RunError

STATUS = "/proc/self/status"
STEPS = 3  # after the first there is all that an optimizer keeps


def step_memory(way: Way) -> Memory:
    """Build `way` in a process of its own and take steps. Raises RunError if that is killed."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        try:
            return pool.submit(_measure, way).result()
        except BrokenProcessPool:
            raise RunError(
                f"the process that measures the memory of {way.name} was killed, probably for want "
                "of memory: take a smaller --size"
            ) from None


def memory_of_torch() -> float:
    """MiB of a process that has imported torch and done nothing else."""
    code = f"import torch\nprint(open({STATUS!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return _resident("VmHWM", done.stdout)


def _measure(way: Way) -> Memory:
    step = way.start()
    before = _resident("VmRSS", Path(STATUS).read_text())
    for batch in range(STEPS):
        step(batch)
    # The mark of this program: getrusage's would begin at that of the process it was forked from.
    return Memory(before, _resident("VmHWM", Path(STATUS).read_text()))


def _resident(key: str, status: str) -> float:
    """In MiB, of a process's status."""
    for line in status.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RunError(f"{STATUS} has no {key}: --memory needs Linux")
