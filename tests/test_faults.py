"""Faults that cost a restart: the run comes back by itself, and ends with the weights of one that
nobody has touched, bit for bit. tests/long_faults.py is the long form."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.commands import ROOT, TINY, finish, saved_weights, start, wait_for
from tests.long_faults import LAUNCHERS, OPTIONS, Chaos, Run

STEPS = 60
pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = finish(start(folder, *OPTIONS, "--run.steps", str(STEPS)))
    assert code == 0, err
    return saved_weights(folder / "runs/tiny/weights")


def _writing(run: Run) -> bool:
    return any((run.place() / "checkpoints").glob(".new-*"))


def _resuming(run: Run) -> bool:
    """The ranks have started again, and record what they do, but have made no step."""
    return any((run.place() / "flight").glob("rank-*"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_comes_back(
    tmp_path: Path, launcher: str, expected: dict[str, torch.Tensor]
) -> None:
    """Killed while it trains, while it resumes from that, and while it writes a checkpoint."""
    run = Run(tmp_path, "run", launcher, STEPS)

    def kill(rank: int, when: Callable[[], bool]) -> None:
        wait_for(lambda: when() or run.process.poll() is not None)
        assert run.process.poll() is None, (tmp_path / "run.log").read_text()
        os.kill(run.ranks()[rank], signal.SIGKILL)

    run.start()
    try:
        kill(1, lambda: run.steps() > 12)
        killed = set(run.ranks())
        kill(0, lambda: len(run.ranks()) == 2 and not killed & set(run.ranks()) and _resuming(run))
        restarts = len(run.rows("restart"))
        kill(1, lambda: len(run.rows("restart")) > restarts and _writing(run))
        assert run.process.wait(120) == 0, (tmp_path / "run.log").read_text()
    finally:
        run.process.kill()
    found = saved_weights(run.place() / "weights")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(run.rows("restart")) > 1 and [row["step"] for row in run.rows("step")] == [
        *range(len(run.rows("step")))
    ]


def test_harm_at_random_moments(tmp_path: Path) -> None:
    report = Chaos(tmp_path, seed=3, length=STEPS).go(kills=4, minutes=None)
    assert not report.problems and report.runs and report.harm.total() == 4


def test_training_goes_on_where_nothing_can_be_written(tmp_path: Path) -> None:
    """No file may grow beyond 4 kB: metrics, checkpoints and flight records all fail, loudly."""
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable]
    options = ("--run.steps", "30", "--checkpoint.every", "10", "--checkpoint.export_hf", "false")
    done = subprocess.run(
        [*limited, str(ROOT / "launch/train.py"), "--config", TINY, *options],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout and "after step 30" in done.stdout
    for said in ("metrics.jsonl: File too large; training on", "rank 1 keeps no flight record: "):
        assert said in done.stderr, done.stderr
    assert done.stdout.count("failed checkpoint: ") == 3, done.stdout
    assert not list((tmp_path / "runs/tiny/checkpoints").glob("step-*"))


def test_a_flipped_bit_ends_the_run_before_a_checkpoint_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "flip")
    options = ("--config", TINY, "--run.check_copies_every", "100", "--checkpoint.every", "1")
    code, out, err = finish(start(tmp_path, *options, script="tests/failing_train.py"))
    assert code == 1 and err.count("\n") == 0, err
    assert "step 2: ranks 0, 1 differ in " in err and "layers.1.input_layernorm.weight" in err, err
    assert "ranks 0, 1 differ" in out
    checkpoints = tmp_path / "runs/tiny/checkpoints"
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-00000001"]
