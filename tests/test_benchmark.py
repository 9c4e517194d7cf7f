"""The benchmark command: both sides compute the same, and what is printed is what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.benchmark import main
from tests.commands import ROOT
from trainer.bench.against import comparable
from trainer.bench.held import allocated, needed
from trainer.bench.results import Agreement, Case, Side, require_same
from trainer.bench.sizes import SIZES, v3_part
from trainer.bench.spread import Spread
from trainer.bench.step_memory import step_memory
from trainer.bench.turns import Step
from trainer.config.parse import config_parser, parse
from trainer.errors import RunError
from trainer.model.size import parameter_counts

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


def measured(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main((*options, "--json")) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def require_figures(report: dict[str, Any], steps: int) -> None:
    """Every case has both sides, whose figures are those of the steps that count."""
    for case in report["cases"]:
        ours, theirs = case["sides"]
        for clock in ("wall", "cpu"):
            a, b = ours[clock]["all"], theirs[clock]["all"]
            assert len(a) == len(b) == steps
            turns = [x / y if report["ratio_of"] == "time" else y / x for x, y in zip(a, b)]
            assert case["ratio"][clock]["all"] == turns
        assert all(found["difference"] <= found["allowed"] for found in case["agreements"])


@pytest.mark.parametrize(
    ("other", "within"), [("transformers", 1e-5), ("bfloat16", 5e-3)], ids=["transformers", "bf16"]
)
def test_both_sides_take_the_same_steps(
    other: str, within: float, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--config", tiny, "--against", other, "--steps", "3", "--warmup", "1")
    report = measured(capsys, *options)
    require_figures(report, 3)
    (case,) = report["cases"]
    ours, theirs = case["sides"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=within)
    assert len(set(ours["losses"])) == 4  # other tokens each step
    assert case["tokens_per_step"] == 64


@pytest.mark.slow  # four processes that import torch
def test_memory_is_measured_of_all_four(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = measured(capsys, "--config", tiny, "--memory", "--steps", "1", "--warmup", "0")
    require_figures(report, 1)
    sides = [side for case in report["cases"] for side in case["sides"]]
    assert len({side["name"] for side in sides}) == 4
    assert all(side["memory"]["peak"] > side["memory"]["before"] > 100 for side in sides)


def test_the_engine_and_plain_modules_have_the_same_gradients(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--width", "32", "64", "--model.layers", "2", "--model.dense_layers", "2")
    options += ("--data.sequence_length", "8", "--precision.parameters", "float64")
    report = measured(capsys, "--against", "plain", *options, "--steps", "2", "--warmup", "0")
    require_figures(report, 2)
    names = [case["name"] for case in report["cases"]]
    assert names == ["width 32", "width 32, kernels", "width 64", "width 64, kernels"]
    for case in report["cases"]:
        found = {one["what"]: one["difference"] for one in case["agreements"]}
        assert found["losses"] < 1e-12 and found["gradients"] < 1e-11


def test_torch_runs_the_same_schedules_to_the_same_gradients(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--ranks", "2", "--micro-batches", "4", "--width", "32", "--model.layers", "4")
    options += ("--model.dense_layers", "4", "--data.sequence_length", "8")
    options += ("--precision.parameters", "float64", "--steps", "2", "--warmup", "0")
    report = measured(capsys, "--against", "torch-pipelining", *options)
    require_figures(report, 2)
    schedules = [case["name"].removeprefix("width 32, ") for case in report["cases"]]
    assert schedules == ["1f1b", "interleaved", "zbv", "dualpipev"]
    for case in report["cases"]:
        found = {one["what"]: one["difference"] for one in case["agreements"]}
        assert found["losses"] < 1e-12 and found["gradients"] < 1e-11
        assert case["sides"][0]["losses"] == report["cases"][0]["sides"][0]["losses"]


def test_several_processes_and_one_train_the_same(
    tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--config", tiny, "--mesh.pipeline", "2", "--runs", "2")
    options += ("--precision.parameters", "float64", "--steps", "1", "--warmup", "1")
    report = measured(capsys, "--against", "one-process", *options)
    require_figures(report, 2)  # two runs of one step
    (case,) = report["cases"]
    ours, theirs = case["sides"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-12)
    assert len(ours["losses"]) == 2 and ours["name"].startswith("processes 2")


def test_both_sides_generate_the_same_texts(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--config", tiny, "--batch", "1", "3", "--prompt-tokens", "5", "--new-tokens", "8")
    options += ("--precision.parameters", "float64", "--steps", "2", "--warmup", "0")
    report = measured(capsys, "--against", "generate", *options)
    require_figures(report, 2)
    assert [case["tokens_per_step"] for case in report["cases"]] == [8, 24]
    for case in report["cases"]:
        (agreement,) = case["agreements"]
        assert agreement == {"what": "texts", "difference": 0.0, "allowed": 0.0}


def test_what_is_allocated_is_counted_until_it_is_freed() -> None:
    before = allocated()
    tensor = torch.ones(2**20)
    assert tensor.nbytes <= allocated() - before < 1.01 * tensor.nbytes
    del tensor
    assert allocated() - before < 2**16


def test_needed_bytes_are_those_of_the_tensors_that_a_backward_reads() -> None:
    """By hand, in millions at V3's size: input and sum 117, latents 17, attention 136, rows 470,
    before SwiGLU 34 and 268."""
    assert needed(v3_part(8).model) == needed(v3_part(4).model)
    assert needed(v3_part().model) == pytest.approx((117 + 17 + 136 + 470 + 34 + 268) * 1e6, 1e-3)


@pytest.mark.slow  # six runs of two processes
def test_recompute_leaves_less_on_the_tape(capsys: pytest.CaptureFixture[str]) -> None:
    # Longer than what a CPU attends to in float32, of which copies are kept (ops/attention.py).
    options = ("--mesh.expert", "2", "--data.global_batch", "2", "--data.sequence_length", "320")
    assert main(("--against", "needed-bytes", *options, "--json")) == 0
    held = [one["held"] for one in json.loads(capsys.readouterr().out)["held"]]
    assert held[0] > 1.2 * held[1] > 1.44 * held[2] > 0.2


@dataclass(frozen=True)
class Allocates:
    """A way whose step needs so many MiB, for a moment."""

    name: str
    mib: int

    def start(self) -> Step:
        return lambda batch: float(torch.ones(self.mib, 2**18).sum())


def test_the_peak_of_a_step_is_what_it_needed_for_a_moment() -> None:
    memory = step_memory(Allocates("allocates", 300))
    assert 299 < memory.peak - memory.before < 350


def test_the_sizes_are_what_they_are_called_and_the_first_is_that_of_the_configs() -> None:
    for name, size in SIZES.items():
        total, _ = parameter_counts(size.config().model)
        assert f"{total / 1e6:.2g}M" == name
    parser = config_parser("benchmark", "", "")
    single, _ = parse(parser, ["--config", str(ROOT / "configs/single.yaml")])
    ours, theirs = comparable(SIZES["1.7M"].config()), comparable(single)
    assert replace(theirs, run=ours.run, metrics=ours.metrics) == ours


def test_sides_that_do_not_compute_the_same_are_an_error() -> None:
    once = Spread((1.0,))
    case = Case("1.7M", 1, Side("a", once, once), Side("b", once, once), ())
    for difference in (2e-3, float("nan")):
        with pytest.raises(RunError, match="a and b do not compute the same: their losses"):
            require_same(replace(case, agreements=(Agreement("losses", difference, 1e-3),)))
    require_same(replace(case, agreements=(Agreement("losses", 1e-4, 1e-3),)))


PLAIN = ("--against", "plain", "--width", "64")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mesh.expert", "2"), "mesh must be 1 x 1 x 1"),
        (("--steps", "0"), "--steps must be between 1 and"),
        (("--against", "nobody"), "nobody"),
        (("--size", "12M", "--config", "configs/single.yaml"), "leave out --config, or --size"),
        (("--against", "float64", "--memory"), "--memory has no effect with --against float64"),
        ((*PLAIN, "--ranks", "2"), "--ranks has no effect with --against plain"),
        (("--against", "torch-pipelining", "--micro-batches", "6"), "micro_batches"),
        (("--against", "generate", "--batch", "0"), "--batch must be a whole number of 1 or more"),
        (("--against", "one-process"), "give --config configs/cpu_4proc.yaml"),
        (("--against", "torch-pipelining", "--ranks", "1"), "several processes: give --ranks"),
        (("--against", "torch-pipelining", "--ranks", "999"), "999 processes"),
        ((*PLAIN, "--size", "12M"), "--size has no effect with --against plain"),
        ((*PLAIN, "--model.layers", "9"), "no experts: set model.dense_layers to model.layers, 9"),
        ((*PLAIN, "--model.attention.q_lora_rank", "null"), "give model.attention.q_lora_rank"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert said in capsys.readouterr().err
