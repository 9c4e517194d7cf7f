"""How a command ends: the one line that it says, and its exit code.

0 all went well; 2 a config, a table or arguments that cannot be run; 1 any other failure; 128 + n
stopped by signal n, and so 141 where nobody reads standard output any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from parallel.errors import TandemError
from parallel.files.shown import printable
from trainer.io.terminal import show_cursor
from trainer.run.signals import SIGNALS

# How torch says that memory is used up: on the CPU it is a RuntimeError like others.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


# What a write says that names no file: only a stream that Python opened itself has no name.
_FROM_PRINTING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


def guarded(prog: str, command: Callable[[], int | None]) -> int:
    """Run `command`, which returns an exit code or None for 0; the exit code to leave with.

    As `reported`, and signals let the command tidy up: Ctrl-C is a KeyboardInterrupt within it,
    SIGTERM and SIGHUP are SystemExit.
    """

    def interruptible() -> int | None:
        with signals_as_exceptions():
            return command()

    return reported(prog, interruptible)


def reported(prog: str, command: Callable[[], int | None]) -> int:
    """Run `command`, which returns an exit code or None for 0; the exit code to leave with.

    Errors become one line on stderr, with a traceback only for what is a defect of the program. All
    output has been written when this returns.
    """
    try:
        code = command() or 0
        sys.stdout.flush()
    except BaseException as error:
        code = report(prog, error)
    return _flushed(prog, code)


def report(prog: str, error: BaseException) -> int:
    """Say on stderr what `error` means to the person at the console; the exit code for it."""
    show_cursor()
    line, code = explain(error)
    if line is None:
        for row in traceback.format_exception(error):
            say(row.rstrip("\n"))
    elif line:
        say(f"{prog}: {line}")
    return code


def explain(error: BaseException) -> tuple[str | None, int]:
    """(the line, exit code) of an error; the line is "" if there is nothing to say, and None for a
    defect of the program, which needs its traceback."""
    match error:
        case TandemError():
            return printable(error), error.exit_code
        case KeyboardInterrupt():
            return "stopped by Ctrl-C", 128 + signal.SIGINT
        case SystemExit():
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            named = isinstance(error.code, (_StoppedBy, str))
            return (printable(error.code) if named else ""), code
        case BrokenPipeError():  # the reader of standard output has closed it
            return "", 128 + signal.SIGPIPE
        case OSError(strerror=str()):
            where = error.filename
            if where is None and error.errno in _FROM_PRINTING:
                where = "standard output"
            return f"{printable(where)}: {error.strerror}" if where else error.strerror, 1
        case UnicodeEncodeError():
            what = f"the output cannot show {error.object!a:.80} in {error.encoding}"
            return f"{what}: set PYTHONIOENCODING=utf-8", 1
        case MemoryError():
            return "not enough memory", 1
        case RuntimeError() if _NO_MEMORY.search(str(error)):
            return f"not enough memory: {printable(str(error).splitlines()[0])}", 1
    return None, 1


def say(line: str) -> None:
    """A line on stderr, if that can be written at all."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class _StoppedBy(int):
    """The exit code of a command that signal n has stopped: 128 + n."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self - 128).name}"


def _raise_exit(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(_StoppedBy(128 + number))


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within, what asks a process to end raises; a signal that is ignored (nohup) stays so."""
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if interrupt else _raise_exit)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flushed(prog: str, code: int) -> int:
    """The exit code once all output is out: what cannot be written is a failure, said once."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            if code == 0:
                code = report(prog, error if isinstance(error, OSError) else OSError())
            _discard(stream.fileno())
    return code


def _discard(descriptor: int) -> None:
    """Send to nowhere what is left in a stream's buffer, which Python would try again at exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)
