"""How a command ends: one line, an exit code, and nothing that steers the terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parallel.files.shown import printable
from trainer.errors import ConfigError, RunError, Stopped
from trainer.io.terminal import plain_console
from trainer.run.exit import guarded

ROOT = Path(__file__).parent.parent


def _raise(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("mesh.expert is 0"), 2, "x: mesh.expert is 0"),
        (RunError("a\nb \x1b[2J [red]c"), 1, "x: a\\nb \\x1b[2J [red]c"),
        (Stopped(signal.SIGTERM, "saved"), 143, "x: saved"),
        (KeyboardInterrupt(), 130, "x: stopped by Ctrl-C"),
        (BrokenPipeError(32, "Broken pipe"), 141, None),
        (
            OSError(28, "No space left on device", "a\x1bb"),
            1,
            "x: a\\x1bb: No space left on device",
        ),
        (MemoryError(), 1, "x: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "x: not enough memory: "),
        (SystemExit(2), 2, None),
    ],
)
def test_a_foreseen_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded("x", _raise(error)) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (line is not None) and err.startswith(line or ""), err


def test_a_defect_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded("x", _raise(ZeroDivisionError("a defect"))) == 1
    assert "test_exit.py" in (err := capsys.readouterr().err) and "a defect" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_command_tidy_up(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    tidied = []

    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            tidied.append(True)

    assert guarded("x", command) == 128 + number
    assert tidied and capsys.readouterr().err.count("x: stopped by ") == 1


@pytest.mark.parametrize(
    ("redirected", "code", "says"),
    [
        ("> /dev/full", 1, "x: standard output: No space left on device\n"),
        ("> /dev/full 2> /dev/full", 1, ""),
        ("| sleep 0; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_output_that_cannot_be_written_is_no_traceback(
    redirected: str, code: int, says: str
) -> None:
    """The output is small enough to be buffered until the very end."""
    program = "import sys, time; from trainer.run.exit import guarded; time.sleep(0.1); "
    program += "sys.exit(guarded('x', lambda: print(1)))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{program}" {redirected}'],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, says)


def test_nothing_in_a_name_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[31m\r\n\x9b\u202eb\udcff é [b]") == (
        "a\\x1b[31m\\r\\n\\x9b\\u202eb\\udcff é [b]"
    )
    plain_console().print("[red]runs/[bold] :smile: 12")
    assert capsys.readouterr().out == "[red]runs/[bold] :smile: 12\n"
