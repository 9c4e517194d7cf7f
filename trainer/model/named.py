"""Tensors of a model part by their names in the released checkpoints, whatever the layout.

The experts of a rank are one grouped parameter here and single matrices there. Initialisation,
loading, saving and comparing all go by these names, so none of them depends on the layout.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.config.schema import Config, ModelConfig
from trainer.model.part import ModelPart
from trainer.model.whole import whole_model

BIAS = "e_score_correction_bias"


def named_tensors(
    part: ModelPart, expert_rank: int, value: Callable[[Tensor], Tensor] = lambda p: p.data
) -> Iterator[tuple[str, Tensor]]:
    """Every weight as (name, view).

    value: what to show of a parameter; itself, or `lambda p: p.grad`.
    """
    for name, parameter in part.named_parameters():
        yield from released_names(name, value(parameter), expert_rank)


def released_name(name: str) -> str:
    """The name of a tensor in the released checkpoints, from its name in a part."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def released_names(name: str, tensor: Tensor, expert_rank: int) -> Iterator[tuple[str, Tensor]]:
    """One parameter of a part, or its gradient, as the tensors it is in a released checkpoint."""
    if ".mlp.experts." not in name:
        yield released_name(name), tensor
        return
    prefix, kind = released_name(name).rsplit(".", 1)
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
    return ((released_name(n), b) for n, b in part.named_buffers() if n.endswith(BIAS))


def mtp_copies(model: ModelConfig) -> dict[str, str]:
    """What the released checkpoints repeat in each MTP module: name of the copy -> of the tensor
    that it is a copy of."""
    copies = {}
    for layer in range(model.layers, model.layers + model.mtp.depth):
        copies[f"model.layers.{layer}.embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"model.layers.{layer}.shared_head.head.weight"] = "lm_head.weight"
    return copies


def has_bias(model: ModelConfig) -> bool:
    """Whether checkpoints of such a model have router biases: V3's do, V2's do not."""
    return model.moe.score == "sigmoid"


def released_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a released checkpoint of such a model, by depth, and its shape; scales of
    fp8 blocks are not among them."""
    with torch.device("meta"):
        whole = whole_model(Config(model=model))
    tensors = [*named_tensors(whole, 0), *(named_biases(whole) if has_bias(model) else ())]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
    shapes |= {copy: shapes[original] for copy, original in mtp_copies(model).items()}
    return dict(sorted(shapes.items(), key=lambda item: depth_order(model, item[0])))


def depth_order(model: ModelConfig, name: str) -> int:
    """Sorts released names by depth: the embedding, the layers, the norm and the head."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer is None:
        return -1 if name == "model.embed_tokens.weight" else model.layers + model.mtp.depth
    return int(layer[1])


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
