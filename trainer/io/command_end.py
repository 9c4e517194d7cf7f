"""How a command that trains nothing ends: an exit code, and one line for what can be foreseen."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from parallel.errors import TandemError
from parallel.schedule.shown import printable


def run_command(prog: str, command: Callable[[], int]) -> int:
    """Call `command`, which imports what it needs itself, so that Ctrl-C may come at any time.

    Returns the exit code of the process: that of `command` or of a TandemError; 1 where the output
    cannot be written; 130 after Ctrl-C; 141 where nobody reads the output to its end.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except TandemError as error:
        return _ended(prog, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _ended(prog, "stopped by Ctrl-C", 128 + signal.SIGINT)
    except BrokenPipeError:
        _discard_stdout()
        return 128 + signal.SIGPIPE
    except UnicodeEncodeError as error:
        line = f"the output cannot show {error.object!a:.80} in {error.encoding}"
        return _ended(prog, f"{line}: set PYTHONIOENCODING=utf-8", 1)
    except OSError as error:
        _discard_stdout()
        return _ended(prog, f"{error.filename or 'the output'}: {error.strerror}", 1)


def _ended(prog: str, line: str, code: int) -> int:
    print(f"{prog}: {printable(line)}", file=sys.stderr)
    return code


def _discard_stdout() -> None:
    """What is still to be written would fail again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
