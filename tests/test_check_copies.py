"""The check for silent errors: one flipped bit on one rank, anywhere, is found and named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.ranks.process import Process
from parallel.reduce.checksum import checksum
from tests.distributed import run_world
from tests.test_equivalence import Case
from tests.test_optimizer_state import train
from trainer.build.layout import build
from trainer.errors import CopiesDifferError
from trainer.guard.copies import check_copies

SPREAD = Case("dualpipe", (2, 2, 1), 1, recompute=False, overlap=True)
REPLICAS = Case("1f1b", (1, 1, 3), 1, recompute=False, overlap=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_checksum_sees_every_bit_and_order(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, dtype=dtype)
    seen = {checksum(x), checksum(x.flip(0))}
    bits = x.view(torch.int16)
    for place in range(bits.numel()):
        for bit in (0, 7, 14, 15):
            mask = -(1 << 15) if bit == 15 else 1 << bit
            bits.view(-1)[place] ^= mask
            seen.add(checksum(x))
            bits.view(-1)[place] ^= mask
    assert len(seen) == 2 + 4 * bits.numel() and checksum(x.clone()) in seen


def _flip(tensor: Tensor) -> None:
    """The last bit of the last element."""
    tensor.view(-1).view(torch.int64 if tensor.element_size() == 8 else torch.int32)[-1] ^= 1


def _check(process: Process, case: Case, zero: str, rank: int, name: str, kind: str) -> str:
    config = case.config()
    config.optimizer.zero = zero  # type: ignore[assignment]
    layout = build(config, process, torch.device("cpu"))
    train(layout, range(1))
    arguments = layout.part, layout.optimizer, layout.copies_of, layout.groups
    check_copies(*arguments)
    if process.rank == rank and kind:
        for fragment in layout.optimizer.state():
            if (fragment.name, fragment.kind) == (name, kind):
                _flip(fragment.values)
    elif process.rank == rank:
        _flip(
            {**dict(layout.part.named_parameters()), **dict(layout.part.named_buffers())}[name].data
        )
    try:
        check_copies(*arguments)
    except CopiesDifferError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "zero", "rank", "name", "kind", "said"),
    [
        (REPLICAS, "off", 1, "layers.0.self_attn.o_proj.weight", "", "rank 1 differs from the"),
        (REPLICAS, "shard", 2, "norm.weight", "", "rank 2 differs from the others in model.norm"),
        (
            REPLICAS,
            "off",
            0,
            "model.norm.weight",
            "exp_avg",
            "rank 0 differs from the others in exp",
        ),
        (
            SPREAD,
            "off",
            3,
            "layers.1.mlp.experts.down_proj",
            "",
            "ranks 1, 3 differ in ",
        ),
        (SPREAD, "off", 0, "layers.1.mlp.gate.e_score_correction_bias", "", "rank 0 differs from"),
    ],
)
def test_a_flipped_bit_is_found(
    case: Case, zero: str, rank: int, name: str, kind: str, said: str
) -> None:
    world = case.config().mesh
    size = world.pipeline * world.expert * world.expert_data
    found = run_world(size, _check, case, zero, rank, name, kind)
    assert len(set(found)) == 1 and found[0].startswith(said), found
    assert name.removeprefix("model.").split(".weight")[0] in found[0]
