"""The run as a person starts it, and what it leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.commands import TINY, finish, rows, saved_weights, start, steps_done, wait_for
from trainer.config.parse import config_parser, parse

ALONE = ("--mesh.expert", "1")


def test_a_run_leaves_config_metrics_and_the_same_weights_from_any_layout(tmp_path: Path) -> None:
    float64 = ("--precision.parameters", "float64", "--metrics.eval_every", "2")
    float64 += ("--checkpoint.export_dtype", "float64")
    both = finish(start(tmp_path, "--config", TINY, *float64))
    alone = finish(start(tmp_path, "--config", TINY, *float64, *ALONE, "--run.name", "alone"))
    assert both[0] == alone[0] == 0, both[2] + alone[2]
    assert "byte-bigram" in both[1] and "left" in both[1] and "tokens/s" in both[1]

    done = rows(tmp_path)
    assert [row["step"] for row in done] == [0, 1, 2]
    for key in (
        "loss", "mtp_1_loss", "balance", "load_max", "load_unused", "learning_rate",
        "gradient_norm", "tokens_per_second", "seconds",
    ):  # fmt: skip
        assert all(row[key] >= 0 for row in done), key
    assert ["validation_loss" in row for row in done] == [False, True, True]
    ours, theirs = (saved_weights(tmp_path / f"runs/{name}/weights") for name in ("tiny", "alone"))
    assert ours.keys() == theirs.keys()
    assert "model.layers.1.mlp.experts.3.gate_proj.weight" in ours
    assert "model.layers.2.eh_proj.weight" in ours  # the MTP module, numbered after the last layer
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-10, msg=name)

    parser = config_parser("test", "", "")
    resolved = parse(parser, ["--config", str(tmp_path / "runs/tiny/config.yaml")])[0]
    assert resolved == parse(parser, ["--config", TINY, *float64])[0]


@pytest.mark.slow
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
