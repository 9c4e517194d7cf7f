"""How a run ends when it is stopped or something goes wrong: said once, on the right exit code,
with nothing lost and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, children, finish, saved_weights, start, steps_done, wait_for

LONG = ("--config", TINY, "--run.steps", "100000")
FAILING = "tests/failing_train.py"


def training(folder: Path, *arguments: str, processes: int = 0) -> subprocess.Popen[str]:
    """A long run that has done some steps."""
    process = start(folder, *LONG, *arguments, processes=processes)
    wait_for(lambda: steps_done(folder) > 2 or process.poll() is not None)
    assert len(children(process)) == 2
    return process


def gone(ranks: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks)


def test_bad_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b\x08 not really")
    code, _, err = finish(start(tmp_path, "--config", TINY, "--data.path", "broken.jsonl.gz"))
    assert code == 1 and err.startswith("train: ") and "broken.jsonl.gz" in err, err
    assert err.count("\n") == 0


@pytest.mark.parametrize(
    ("number", "torchrun"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 2)]
)
def test_a_signal_ends_the_step_and_saves(
    tmp_path: Path, number: signal.Signals, torchrun: int
) -> None:
    """SIGTERM to the parent alone; SIGINT to every process, as Ctrl-C on a terminal does."""
    process = training(tmp_path, processes=torchrun)
    ranks = children(process)
    os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    code, _, err = finish(process, timeout=20)
    assert code == (1 if torchrun else 128 + number)
    assert "stopped after step" in err and "weights in runs/tiny/weights" in err, err
    assert "checkpoint in runs/tiny/checkpoints/step-" in err, err
    assert err.count("\n") == 0 and gone(ranks)
    assert saved_weights(tmp_path / "runs/tiny/weights")


def test_an_exception_on_one_rank_ends_all_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "raise")
    code, _, err = finish(start(tmp_path, "--config", TINY, script=FAILING), timeout=60)
    assert code == 1
    assert "[rank 1] ArithmeticError: a fault in layer 1" in err, err
    assert "[rank 1]   File" in err and "failing_train.py" in err
    assert all(line.startswith("[rank 1]") for line in err.splitlines()), err


def test_a_loss_that_is_not_finite_stops_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "nan")
    limit = ("--optimizer.skip_limit", "2")
    code, _, err = finish(start(tmp_path, "--config", TINY, *limit, script=FAILING))
    (line,) = [line for line in err.splitlines() if line.startswith("failing_train: ")]
    assert code == 1
    assert "step 3: the last of 2 skipped in a row: " in line and "rank 1 (loss)" in line, err
    assert steps_done(tmp_path) == 2
    weights = saved_weights(tmp_path / "runs/tiny/weights")  # of the last good step
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_ranks_that_read_different_text_do_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "text")
    (tmp_path / "other.txt").write_text("another text " * 100)
    code, _, err = finish(start(tmp_path, "--config", TINY, script=FAILING))
    assert code == 1 and "rank 1 has a different text" in err and err.count("\n") == 0, err
    assert not (tmp_path / "runs/tiny/metrics.jsonl").exists()


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path: Path) -> None:
    process = training(tmp_path)
    ranks = children(process)
    os.kill(ranks[1], signal.SIGKILL)
    code, _, err = finish(process, timeout=20)
    assert code == 128 + signal.SIGKILL and gone(ranks)
    assert err.startswith("train: rank 1 was ended by SIGKILL") and err.count("\n") == 0, err


@pytest.mark.parametrize("torchrun", [0, 2])
def test_ranks_do_not_train_on_without_their_parent(tmp_path: Path, torchrun: int) -> None:
    process = training(tmp_path, processes=torchrun)
    ranks = children(process)
    process.kill()
    wait_for(lambda: gone(ranks), 20)
    assert "stopped after step" in finish(process)[2]
    assert saved_weights(tmp_path / "runs/tiny/weights")


@pytest.mark.faults
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_stands_still_is_named_within_the_timeout(tmp_path: Path, stopped: int) -> None:
    process = training(tmp_path, "--run.timeout", "5")
    ranks = children(process)
    os.kill(ranks[stopped], signal.SIGSTOP)
    code, _, err = finish(process, timeout=30)
    assert code == 1 and gone(ranks)
    *table, line = err.splitlines()
    assert line.startswith(f"train: rank {stopped} does not answer"), err
    assert ("last seen in step" in line) == (stopped == 1), "rank 0 serves the store"
    assert [row.split("  ")[0] for row in table[1:]] == [f"{stopped} (lost)", f"{1 - stopped}"]
    assert all("in step" in row for row in table[1:]), err
    # Both may have come to the end of their items, and wait there for each other.
    assert all(" of 8: " in row or "over their copies" in row for row in table[1:]), err
    (report,) = (tmp_path / "runs/tiny/flight").glob("*.json")
    assert str(report.relative_to(tmp_path)) in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, *LONG)
    wait_for(lambda: (tmp_path / "runs/tiny/.tandem-run").exists() or process.poll() is not None)
    os.kill(process.pid, number)
    code, _, err = finish(process, timeout=20)
    assert code == 128 + number and err.count("\n") == 0, err
    assert err == f"train: stopped by {number.name} before there was anything to save"
    assert not (tmp_path / "runs/tiny").exists()


@pytest.mark.parametrize("mesh", [1, 2])
def test_ctrl_c_while_importing_is_one_line(tmp_path: Path, mesh: int) -> None:
    process = start(tmp_path, *LONG, "--mesh.expert", str(mesh))

    def importing() -> bool:
        ranks = [process.pid] if mesh == 1 else children(process)
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in ranks]
        return len(maps) == mesh and any("libtorch" in text for text in maps)

    wait_for(importing)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = finish(process, timeout=20)
    assert code == 130 and "stopped by SIGINT" in err and err.count("\n") == 0, err
    assert steps_done(tmp_path) == 0
