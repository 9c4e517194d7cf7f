"""How a command ends: what it says, on which rank, and its exit code.

0 all went well; 2 a config that cannot be run; 1 any other failure; 128 + n stopped by signal n.
"""

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
from trainer.run.signals import StopRequest

# torchrun ends the other ranks when one has failed, so a rank that stays silent for this long
# lets rank 0 say what is wrong once, and still speaks if rank 0 has nothing to say.
_SILENCE = 3.0
# How gloo, NCCL and the store speak of a peer that is gone.
_LOST_PEER = re.compile(r"gloo/|NCCL|ProcessGroup|TCPStore|Broken pipe")


def refuse(error: ConfigError, prog: str) -> NoReturn:
    """End for a bad config, which every rank has found by itself."""
    if _rank() > 0:
        time.sleep(_SILENCE)
    print(f"{prog}: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def run_guarded(command: Callable[[StopRequest], None], prog: str) -> NoReturn:
    """Run a command to its end and exit. No failure hangs in a peer's collective: a rank that
    fails leaves at once, without waiting for threads that wait for other ranks."""
    stop = StopRequest()
    rank = _rank()
    code = 1
    try:
        command(stop)
        code = 0
    except Stopped as stopped:
        code = stopped.exit_code
        if rank == 0:
            print(f"{prog}: {stopped}", file=sys.stderr)
    except TandemError as error:
        code = error.exit_code
        if rank == 0 or not stop.wait(_SILENCE):
            print(f"{prog}: {error}", file=sys.stderr)
    except BaseException as error:
        if isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)):
            line = str(error).splitlines()[0]
            print(f"{prog}: rank {rank} has lost another rank: {line}", file=sys.stderr)
        else:
            for line in traceback.format_exc().splitlines():
                print(f"[rank {rank}] {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        sys.exit(0)
    os._exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
