"""The run as a person starts it: what it leaves behind, and how it ends when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.commands import TINY, finish, start
from trainer.config.parse import config_parser, parse

ALONE = ("--mesh.expert", "1")


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as shard:
            tensors[name] = shard.get_tensor(name)
    return tensors


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def steps_done(folder: Path, name: str = "tiny") -> int:
    metrics = folder / "runs" / name / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_a_run_leaves_config_metrics_and_the_same_weights_from_any_layout(tmp_path: Path) -> None:
    float64 = ("--precision.parameters", "float64", "--metrics.eval_every", "2")
    float64 += ("--checkpoint.export_dtype", "float64")
    both = finish(start(tmp_path, "--config", TINY, *float64, processes=2))
    alone = finish(start(tmp_path, "--config", TINY, *float64, *ALONE, "--run.name", "alone"))
    assert both[0] == alone[0] == 0, both[2] + alone[2]
    assert "byte-bigram" in both[1] and "left" in both[1] and "tokens/s" in both[1]

    metrics = (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in metrics.splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for key in (
        "loss", "mtp_1_loss", "balance", "load_max", "load_unused", "learning_rate",
        "gradient_norm", "tokens_per_second", "seconds",
    ):  # fmt: skip
        assert all(row[key] >= 0 for row in rows), key
    assert ["validation_loss" in row for row in rows] == [False, True, True]
    ours, theirs = (saved_weights(tmp_path / f"runs/{name}/weights") for name in ("tiny", "alone"))
    assert ours.keys() == theirs.keys()
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in ours
    assert "model.layers.2.eh_proj.weight" in ours  # the MTP module, numbered behind the last layer
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-10, msg=name)

    parser = config_parser("test", "", "")
    resolved = parse(parser, ["--config", str(tmp_path / "runs/tiny/config.yaml")])[0]
    assert resolved == parse(parser, ["--config", TINY, *float64])[0]


def test_runs_at_one_time_do_not_meet(tmp_path: Path) -> None:
    """All ranks know the number that the first rank has taken; a run going on is not replaced."""
    arguments = ("--config", TINY, "--run.steps", "100000")
    running = [start(tmp_path, *arguments, processes=2) for _ in range(2)]
    wait_for(lambda: all(steps_done(tmp_path, name) > 1 for name in ("tiny", "tiny-2")))
    code, _, err = finish(start(tmp_path, *arguments, *ALONE, "--run.overwrite", "true"))
    assert code == 1 and "in use" in err and len(err.splitlines()) == 1, err
    for process in running:
        os.kill(process.pid, signal.SIGTERM)
    said = "".join(finish(process)[2] for process in running)
    for name in ("tiny", "tiny-2"):
        assert f"weights in runs/{name}/weights" in said, said
        assert saved_weights(tmp_path / "runs" / name / "weights")
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data.path", "nowhere.txt"), "nowhere.txt"),
        (("--data.path", "broken.jsonl.gz"), "broken.jsonl.gz"),
    ],
)
def test_bad_text_is_one_line_on_one_rank_and_ends_all(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b\x08 not really")
    code, _, err = finish(start(tmp_path, "--config", TINY, *arguments, processes=2))
    lines = [line for line in err.splitlines() if line.startswith("train: ")]
    assert code != 0 and len(lines) == 1 and words in lines[0], err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM to torchrun alone; SIGINT to every process, as Ctrl-C on a terminal does."""
    process = start(tmp_path, "--config", TINY, "--run.steps", "100000", processes=2)
    wait_for(lambda: steps_done(tmp_path) > 2)
    begin = time.monotonic()
    os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    code, _, err = finish(process, timeout=20)
    assert code != 0
    assert "stopped after step" in err and "weights in runs/tiny/weights" in err, err
    assert saved_weights(tmp_path / "runs/tiny/weights")
    assert time.monotonic() - begin < 15


def test_an_exception_on_one_rank_ends_all_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "raise")
    begin = time.monotonic()
    process = start(tmp_path, "--config", TINY, processes=2, script="tests/failing_train.py")
    code, _, err = finish(process, timeout=60)
    assert code != 0 and time.monotonic() - begin < 45
    assert "[rank 1] ArithmeticError: a fault in layer 1" in err, err
    assert "[rank 1]   File" in err and "failing_train.py" in err
    assert "[rank 0] Traceback" not in err


def test_a_loss_that_is_not_finite_stops_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "nan")
    process = start(tmp_path, "--config", TINY, processes=2, script="tests/failing_train.py")
    code, _, err = finish(process)
    (line,) = [line for line in err.splitlines() if line.startswith("failing_train: ")]
    assert code != 0
    assert "step 1: " in line and "rank 1 (loss)" in line, err
    assert steps_done(tmp_path) == 1
    weights = saved_weights(tmp_path / "runs/tiny/weights")  # of the last good step
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_ranks_that_read_different_text_do_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "text")
    (tmp_path / "other.txt").write_text("another text " * 100)
    process = start(tmp_path, "--config", TINY, processes=2, script="tests/failing_train.py")
    code, _, err = finish(process)
    assert code != 0 and "rank 1 has another text" in err, err
    assert not (tmp_path / "runs/tiny/metrics.jsonl").exists()


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    process = start(tmp_path, "--config", TINY, "--run.steps", "100000", processes=2)
    wait_for(lambda: steps_done(tmp_path) > 2)
    ranks = children(process)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    code, _, _ = finish(process, timeout=40)
    assert code != 0 and time.monotonic() - begin < 35
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), 5)
