"""How one rank of a run ends: what it says beside the others, and its exit code."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from parallel.errors import TandemError
from trainer.errors import ConfigError, Stopped
from trainer.run.exit import explain, guarded, say
from trainer.run.signals import StopRequest

# Whoever has started the ranks ends the others when one has failed, so a rank that stays silent for
# this long lets rank 0 say what is wrong once, and still speaks if rank 0 has nothing to say.
_SILENCE = 3.0
# How gloo, NCCL and the store speak of a peer that is gone.
_LOST_PEER = re.compile(r"gloo/|NCCL|ProcessGroup|TCPStore|Broken pipe")


def refuse(error: ConfigError, prog: str) -> NoReturn:
    """End for a bad config, which every rank has found by itself."""
    if _rank() > 0:
        time.sleep(_SILENCE)
    say(f"{prog}: {error}")
    sys.exit(2)


def run_guarded(command: Callable[[StopRequest], None], prog: str) -> NoReturn:
    """Run a command to its end and exit. No failure hangs in a peer's collective: a rank that
    fails leaves at once, without waiting for threads that wait for other ranks."""
    stop = StopRequest()
    rank = _rank()

    def run() -> int:
        try:
            command(stop)
        except Stopped as stopped:
            if rank == 0:
                raise
            return stopped.exit_code
        except TandemError as error:
            if rank == 0 or not stop.wait(_SILENCE):
                raise
            return error.exit_code
        except BaseException as error:
            line, code = explain(error)
            if line is not None:
                raise
            if isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)):
                first = str(error).splitlines()[0]
                say(f"{prog}: rank {rank} has lost another rank: {first}")
                return code
            for line in traceback.format_exc().splitlines():
                say(f"[rank {rank}] {line}")
            return code
        return 0

    code = guarded(prog, run)
    if code == 0:
        sys.exit(0)
    os._exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
