"""The weights that a run starts from: made on meta, and filled in place."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from parallel.errors import TandemError
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_precision import config
from trainer.build.layout import build
from trainer.build.ops import kernels_of
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import read_companions
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import Config, MeshConfig, PipelineConfig, PrecisionConfig, RunConfig
from trainer.errors import ConfigError
from trainer.model.names import initialise, named_tensors
from trainer.model.whole import whole_model


def _as_a_whole_model_has_them(process: Process, of: Config) -> bool:
    layout = build(of, process, torch.device("cpu"))
    whole = whole_model(of.model, Ops(PRECISIONS[of.precision.parameters]))
    initialise(whole, of.run.seed, of.model.init_std)
    expected = dict(named_tensors(whole))
    for name, tensor in named_tensors(layout.part):
        assert torch.equal(tensor, expected[name]), name
    held = {share.bucket.values.data_ptr() for share in layout.gradients.shares}
    for parameter in layout.part.parameters():  # nowhere else
        assert parameter.untyped_storage().data_ptr() in held
        assert parameter.grad.shape == parameter.shape
    masters = [f for f in layout.optimizer.state() if f.kind == "master"]
    for master in masters:
        piece = expected[master.name].flatten()[master.start :][: len(master.values)]
        assert torch.equal(master.values, piece.to(master.values.dtype)), master.name
    return bool(masters)


@pytest.mark.parametrize("zero", ["shard", "deepspeed"])
def test_weights_filled_in_place_are_those_of_a_model_made_whole(zero: str) -> None:
    of = config()
    of.optimizer.zero = zero
    assert _as_a_whole_model_has_them(Process(), of)
    of.mesh, of.pipeline = MeshConfig(expert=2), PipelineConfig("dualpipev", micro_batches=2)
    assert run_world(2, _as_a_whole_model_has_them, of) == [True, True]


def _read_by_the_first(process: Process, of: Config) -> dict[str, bytes] | str:
    """The weights of this rank, or why there are none; only rank 0 may read headers."""
    refuse = patch.object(Checkpoint, "_read_header", side_effect=AssertionError)
    with refuse if process.rank else nullcontext():
        try:
            layout = build(of, process, torch.device("cpu"))
        except TandemError as error:
            return type(error).__name__
    return {name: t.numpy().tobytes() for name, t in named_tensors(layout.part)}


def test_one_rank_reads_the_headers_of_a_checkpoint_for_all(tmp_path: Path) -> None:
    of, folder = config("float32"), tmp_path / "weights"
    whole = build(of, Process(), torch.device("cpu"))
    save_checkpoint(whole, folder, read_companions(of))
    expected = {name: tensor.numpy().tobytes() for name, tensor in named_tensors(whole.part)}
    of.model.init_from, of.run.seed, of.mesh = str(folder), 7, MeshConfig(expert=2)
    for held in run_world(2, _read_by_the_first, of):
        assert held and held == {name: expected[name] for name in held}
    of.model.init_from = str(tmp_path / "nowhere")
    assert run_world(2, _read_by_the_first, of) == ["CheckpointError", "PeerError"]


@pytest.mark.parametrize(
    ("asked", "linear", "device", "chosen"),
    [
        ("auto", "fp8", "cuda", "triton"),
        ("auto", "same", "cuda", "torch"),
        ("auto", "fp8", "cpu", "torch"),
        ("triton", "same", "cuda", "triton"),
        ("torch", "fp8", "cuda", "torch"),
    ],
)
def test_whose_kernels_multiply(asked: Any, linear: Any, device: str, chosen: str) -> None:
    config = Config(run=RunConfig(kernels=asked), precision=PrecisionConfig("bfloat16", linear))
    assert kernels_of(config, torch.device(device)) == chosen


def test_a_cpu_has_no_kernels_in_triton() -> None:
    with pytest.raises(ConfigError, match=r"run\.kernels = triton needs a GPU.* to torch"):
        kernels_of(Config(run=RunConfig(kernels="triton")), torch.device("cpu"))
