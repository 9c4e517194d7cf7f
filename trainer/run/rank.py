"""How one rank of a run ends: what it says beside the others, and its exit code."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from parallel.errors import LostRankError, TandemError
from parallel.ranks.environment import place_from_environment
from trainer.errors import ConfigError, Stopped
from trainer.run.exit import explain, reported, say
from trainer.run.signals import StopRequest

# The process that started the ranks ends the others when one has failed, so a rank that stays
# silent for this long lets another say what is wrong once, and still speaks if that has nothing to
# say.
_SILENCE = 3.0
# How long torchrun waits after SIGTERM before it kills its ranks, and what it waits unless told.
_TORCHRUN_WAITS, _USUAL_WAIT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30.0
_TO_LEAVE = 10.0  # seconds of these


@contextmanager
def said_once() -> Iterator[None]:
    """For a bad config, which every rank finds by itself: rank 0 says so before the others do."""
    try:
        yield
    except ConfigError:
        if _rank() > 0:
            time.sleep(_SILENCE)
        raise


def run_rank(prog: str, command: Callable[[StopRequest], None]) -> NoReturn:
    """Run a rank's part to its end and exit. No failure hangs in a peer's collective: a rank that
    fails leaves at once, without waiting for threads that wait for other ranks."""
    stop = StopRequest(prog, grace(os.environ))
    code = reported(prog, lambda: _run(command, stop))
    if code == 0:
        sys.exit(0)
    os._exit(code)


def grace(environment: Mapping[str, str]) -> float:
    """Seconds that a step may still take after a signal to stop: most of what torchrun waits."""
    given = environment.get(_TORCHRUN_WAITS, "")
    return max(float(given) if given.isdecimal() else _USUAL_WAIT, 2 * _TO_LEAVE) - _TO_LEAVE


def _run(command: Callable[[StopRequest], None], stop: StopRequest) -> int:
    rank = _rank()
    try:
        command(stop)
    except Stopped as stopped:
        if rank == 0:
            raise
        return stopped.exit_code
    except TandemError as error:
        if isinstance(error, LostRankError) and rank == 0:
            stop.interrupt_if_asked()  # the others have stopped sooner: that is why they are gone
        if _speaks(error, rank, stop):
            raise
        return error.exit_code
    except BaseException as error:
        if explain(error)[0] is not None:
            raise
        for line in traceback.format_exc().splitlines():
            say(f"[rank {rank}] {line}")
        return 1
    return 0


def _speaks(error: TandemError, rank: int, stop: StopRequest) -> bool:
    """Whether this rank is to say what has gone wrong; if not, another has had time to."""
    if isinstance(error, LostRankError):
        if not error.speaks:
            stop.wait(_SILENCE)
        return error.speaks
    return rank == 0 or not stop.wait(_SILENCE)


def _rank() -> int:
    place = place_from_environment()
    return 0 if place is None else place.rank
