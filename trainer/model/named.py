"""Tensors of a model part by the names of the whole model, whatever the layout.

Names are those of the released checkpoints without their leading `model.`; the embedding and the
head that MTP modules repeat there are not repeated here.

The experts of a rank are one grouped parameter here and single matrices there. Initialisation,
saving and comparing all go by these names, so none of them depends on the layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.model.part import ModelPart


def named_tensors(
    part: ModelPart, expert_rank: int, value: Callable[[Tensor], Tensor] = lambda p: p.data
) -> Iterator[tuple[str, Tensor]]:
    """Every weight as (name, view).

    value: what to show of a parameter; itself, or `lambda p: p.grad`.
    """
    for name, parameter in part.named_parameters():
        yield from released_names(name, value(parameter), expert_rank)


def released_names(name: str, tensor: Tensor, expert_rank: int) -> Iterator[tuple[str, Tensor]]:
    """One parameter of a part, or its gradient, as the tensors it is in a released checkpoint."""
    if ".mlp.experts." not in name:
        yield name, tensor
        return
    prefix, kind = name.rsplit(".", 1)
    for here, matrix in enumerate(tensor):
        expert = f"{prefix}.{expert_rank * len(tensor) + here}"
        if kind == "gate_up_proj":
            gate, up = matrix.chunk(2)
            yield f"{expert}.gate_proj.weight", gate
            yield f"{expert}.up_proj.weight", up
        else:
            yield f"{expert}.down_proj.weight", matrix


def named_biases(part: ModelPart) -> Iterator[tuple[str, Tensor]]:
    """The router biases as (name, tensor)."""
    return ((n, b) for n, b in part.named_buffers() if n.endswith("e_score_correction_bias"))


@torch.no_grad()
def initialise(part: ModelPart, expert_rank: int, seed: int, std: float) -> None:
    """Draw each matrix from N(0, std) with a generator seeded by the seed and its name, set norms
    to one and the router bias to zero: the same weights under every layout."""
    for name, tensor in named_tensors(part, expert_rank):
        if tensor.ndim == 1:
            tensor.fill_(1)
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor.copy_(torch.empty(tensor.shape).normal_(0, std, generator=generator))
    for _, bias in named_biases(part):
        bias.zero_()
