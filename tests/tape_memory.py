"""What a tape holds of one MoE layer of DeepSeek-V3 (arXiv 2412.19437, section 4.2) between the
forward and the backward of a micro-batch of 4,096 tokens in bfloat16.

    python -m tests.tape_memory

The layer that runs here is an eighth as wide, with an eighth of the tokens: every tensor that
counts is tokens x width, so its bytes times 64 are those of the whole. 64 ranks share the experts,
in threads of one process each of which would hold the same; an all-to-all here gives a rank back
what it sends, as a balanced one would give it as much.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.expert.all_to_all import AllToAll
from parallel.expert.dispatch import AllToAllDispatcher
from parallel.expert.placement import ExpertPlacement
from parallel.ops.ops import Ops
from parallel.ops.precision import PRECISIONS
from parallel.tape.passes import run
from parallel.tape.tape import Tape
from trainer.config.schema import AttentionConfig, ModelConfig, MoEConfig, RecomputeConfig
from trainer.model.attention import MLA
from trainer.model.layer import Layer
from trainer.model.moe import BALANCE, ExpertsHere, MoE
from trainer.model.options import LayerOptions

SCALE, TOKENS, RANKS = 8, 4096, 64
MODEL = ModelConfig(
    dim=7168 // SCALE,
    attention=AttentionConfig(128 // SCALE, 1536 // SCALE, 512 // SCALE, 128, 64, 128),
    moe=MoEConfig(256, 1, 8, 8, 4, 2048 // SCALE, 2.5),
)
WAYS = {
    "nothing recomputed": RecomputeConfig(),
    "norms, up-projections, SwiGLU": RecomputeConfig(True, True, True),
    "the whole layer": RecomputeConfig(layer=True),
}


@dataclass(frozen=True)
class Echoed:
    received: tuple[Tensor, ...]

    def wait(self) -> tuple[Tensor, ...]:
        return self.received


def echo(self: AllToAll, *tensors: Tensor) -> Echoed:
    return Echoed(tuple(tensor.clone() for tensor in tensors))


class Storages(TorchDispatchMode):
    """Every storage that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage)
        return made

    def bytes(self) -> int:
        """Of those that are there still."""
        gc.collect()
        alive = [ref for ref in self.made.values() if not ref.expired()]
        storages = [torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in alive]
        return sum(storage.nbytes() for storage in storages if storage is not None)


def held(recompute: RecomputeConfig) -> float:
    """Bytes, for the whole layer."""
    generator = torch.Generator().manual_seed(0)
    tokens = TOKENS // SCALE
    ops = Ops(PRECISIONS["bfloat16"])
    placement = ExpertPlacement.contiguous(MODEL.moe.experts, RANKS)
    dispatcher = AllToAllDispatcher(None, placement, torch.device("cpu"))  # type: ignore[arg-type]
    options = LayerOptions(MODEL, recompute, ops, tokens)
    moe = MoE(options, "layers.3", ExpertsHere(placement.held[0], dispatcher))
    layer = Layer(options, MLA(options), moe)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.02, generator=generator)
    x_TD = torch.randn(tokens, MODEL.dim, generator=generator).bfloat16()
    tape = Tape(loss_weights={BALANCE: 1e-4})
    with patch.object(AllToAll, "start", echo), Storages() as storages:
        tape.end(run(layer(tape, tape.begin(x_TD))))
        return SCALE**2 * (x_TD.nbytes + storages.bytes())


def main() -> None:
    for name, recompute in WAYS.items():
        print(f"{name:32} {held(recompute) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
