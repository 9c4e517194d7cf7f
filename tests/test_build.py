"""The weights that a run starts from: made on meta, and filled in place."""

from __future__ import annotations

import pytest
import torch

from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_precision import config
from trainer.build.layout import build
from trainer.config.schema import Config, MeshConfig, PipelineConfig
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
