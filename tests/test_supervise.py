"""The parent of the ranks, with small children that are no ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from parallel.ranks.environment import LaunchError, Place, place_from_environment
from tests.commands import ROOT
from trainer.errors import ConfigError
from trainer.run.local_ranks import require_room, threads
from trainer.run.supervise import Child, supervise

SLEEP = "exec sleep 60"
SCRIPTS = sorted((ROOT / "launch").glob("[!_]*.py"))


def _children(commands: Sequence[str]) -> list[Child]:
    return [Child(f"child {n}", ["sh", "-c", text], {}) for n, text in enumerate(commands)]


@pytest.mark.parametrize(
    ("commands", "code", "says"),
    [
        (["exit 0", "exit 0"], 0, ""),
        (["exit 0", "sleep 0.2; exit 3", SLEEP], 3, ""),
        ([SLEEP, "kill -9 $$"], 137, "x: child 1 was ended by SIGKILL"),
        (["trap '' TERM INT HUP; while :; do sleep 1; done", "exit 2"], 2, ""),
    ],
)
def test_the_first_failure_ends_all_and_gives_the_exit_code(
    commands: list[str], code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    assert supervise("x", _children(commands)) == code
    err = capfd.readouterr().err
    assert err.startswith(says) and err.count("\n") == bool(says)
    assert time.monotonic() - start < 30, "it waited for a child that had to be ended"


def test_a_signal_reaches_every_child(tmp_path: Path) -> None:
    """Each needs its time to end, and has it."""
    command = (
        "trap 'sleep 0.7; touch $ENDED; exit 143' TERM; touch $READY; while :; do sleep 0.1; done"
    )
    environments = [
        {"READY": str(tmp_path / f"ready{n}"), "ENDED": str(tmp_path / f"ended{n}")} for n in (0, 1)
    ]

    def send() -> None:
        while len(list(tmp_path.glob("ready*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    before = signal.getsignal(signal.SIGTERM)
    children = [Child("", ["sh", "-c", command], environment) for environment in environments]
    named = [Child(str(n), child.arguments, child.environment) for n, child in enumerate(children)]
    assert supervise("x", named) == 143
    assert len(list(tmp_path.glob("ended*"))) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_cannot_be_started_ends_those_that_were() -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        supervise("x", [*_children([SLEEP]), Child("b", ["/no/such/program"], {})])
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 4), (2, 4, 1)]
)
def test_cores_are_shared_out(
    cores: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert threads(ranks) == expected
    require_room("train", 16 * cores)
    with pytest.raises(ConfigError, match="torchrun"):
        require_room("train", 16 * cores + 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            Place(5, 8, 1, 4),
        ),
        ({"RANK": "1"}, "WORLD_SIZE= "),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
    ],
)
def test_the_place_among_the_ranks(
    given: dict[str, str], expected: Place | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(LaunchError, match=expected):
            place_from_environment()
    else:
        assert place_from_environment() == expected


def test_a_script_runs_the_checkout_that_it_lies_in(tmp_path: Path) -> None:
    """Not what is installed, nor what PYTHONPATH has, nor what the scripts' own names shadow."""
    for package in ("trainer", "parallel"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the wrong checkout')")
    for script in SCRIPTS:
        first = [line for line in script.read_text().splitlines() if "import" in line][1]
        assert first.startswith("    import _checkout"), script
        assert script.stem not in sys.stdlib_module_names
    for name in ("simulate", "train"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch" / f"{name}.py"), "--help"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr
