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

from trainer.data.errors import DataError
from trainer.errors import RunError, Stopped
from trainer.validate import ConfigError

# torchrun ends the other ranks when one has failed, so a rank that stays silent for this long
# lets rank 0 say what is wrong once, and still speaks if rank 0 has nothing to say.
_SILENCE = 3.0
_LOST_PEER = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket timeout|timed out|store.*(closed|fail)",
    re.IGNORECASE | re.DOTALL,
)


def refuse(error: ConfigError, prog: str) -> NoReturn:
    """End for a bad config, which every rank has found by itself."""
    _say(f"{prog}: {error}", rank=_rank())
    sys.exit(2)


def run_guarded(command: Callable[[], None], prog: str) -> NoReturn:
    """Run a command to its end and exit. No failure hangs in a peer's collective: a rank that
    fails leaves at once, without waiting for threads that wait for other ranks."""
    from parallel.together import PeerError

    rank = _rank()
    code = 1
    try:
        command()
        code = 0
    except ConfigError as error:
        refuse(error, prog)
    except Stopped as stopped:
        code = 128 + stopped.signal
        if rank == 0:
            print(f"{prog}: {stopped}", file=sys.stderr)
    except (RunError, DataError, PeerError) as error:
        _say(f"{prog}: {error}", rank)
    except BaseException as error:
        if _LOST_PEER.search(str(error)) and not isinstance(error, OSError | SyntaxError):
            _say(f"{prog}: rank {rank} lost another rank, which says why: {_first_line(error)}", rank)
        else:
            lines = traceback.format_exc().splitlines()
            text = "\n".join(f"[rank {rank}] {line}" for line in lines)
            print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        sys.exit(0)
    os._exit(code)


def _say(line: str, rank: int) -> None:
    if rank > 0:
        time.sleep(_SILENCE)
    print(line, file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
