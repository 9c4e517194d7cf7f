"""The benchmark command: both sides train the same, and what is printed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.benchmark import main

TINY = """
pipeline: {schedule: 1f1b, micro_batches: 2}
model:
  layers: 2
  dense_layers: 1
  dim: 32
  moe: {experts: 4, top_k: 2, expert_dim: 16}
  mtp: {depth: 1}
data: {sequence_length: 16, global_batch: 4}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


@pytest.mark.parametrize(
    ("other", "within"), [("transformers", 1e-5), ("bfloat16", 5e-3)], ids=["transformers", "bf16"]
)
def test_both_sides_take_the_same_steps(
    other: str, within: float, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--config", tiny, "--against", other, "--steps", "3", "--warmup", "1", "--json")
    assert main(options) == 0
    result = json.loads(capsys.readouterr().out)
    ours, theirs = result["sides"].values()
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=within)
    assert len(set(ours["losses"])) == 4  # other tokens each step
    assert len(ours["step_seconds"]) == len(theirs["step_seconds"]) == 3
    assert result["tokens_per_step"] == 64
    assert result["speed_up"] == theirs["median_seconds"] / ours["median_seconds"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mesh.expert", "2"), "mesh must be 1 x 1 x 1"),
        (("--steps", "0"), "--steps must be between 1 and"),
        (("--against", "nobody"), "nobody"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: tuple[str, ...], said: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("--config", tiny, *options)) == 2
    assert said in capsys.readouterr().err
