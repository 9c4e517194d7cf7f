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

from parallel.expert.experts import GroupedExperts
from parallel.ops.ops import Ops
from trainer.config.schema import ModelConfig
from trainer.model.part import ModelPart
from trainer.model.partition import layer_name
from trainer.model.whole import whole_model

BIAS = "e_score_correction_bias"


def named_tensors(
    part: ModelPart, value: Callable[[Tensor], Tensor] = lambda p: p.data
) -> Iterator[tuple[str, Tensor]]:
    """Every weight as (name, view).

    value: what to show of a parameter; itself, or its gradient.
    """
    for name, parameter in part.named_parameters():
        yield from released_names(part, name, value(parameter))


def released_name(name: str) -> str:
    """The name of a tensor in the released checkpoints, from its name in a part."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def released_names(part: ModelPart, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One parameter of a part, or its gradient, as the tensors it is in a released checkpoint."""
    module = part.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, GroupedExperts):
        yield released_name(name), tensor
        return
    prefix, kind = released_name(name).rsplit(".", 1)
    for number, matrix in zip(module.held, tensor, strict=True):
        gate, up, down = _expert_names(f"{prefix}.{number}")
        yield from zip((gate, up), matrix.chunk(2)) if kind == "gate_up_proj" else [(down, matrix)]


def expert_names(layer: int, expert: int) -> tuple[str, str, str]:
    """The tensors of one expert: gate, up and down projection."""
    return _expert_names(released_name(f"{layer_name(layer)}.mlp.experts.{expert}"))


def _expert_names(prefix: str) -> tuple[str, str, str]:
    gate, up, down = (f"{prefix}.{kind}_proj.weight" for kind in ("gate", "up", "down"))
    return gate, up, down


def named_biases(part: ModelPart) -> Iterator[tuple[str, Tensor]]:
    """The router biases as (name, tensor)."""
    return ((released_name(n), b) for n, b in part.named_buffers() if n.endswith(BIAS))


def bias_name(layer: int) -> str:
    """The name of a layer's router bias."""
    return released_name(f"{layer_name(layer)}.mlp.gate.{BIAS}")


def mtp_copies(model: ModelConfig) -> dict[str, str]:
    """What the released checkpoints repeat in each MTP module: name of the copy -> of the tensor
    that it is a copy of."""
    copies = {}
    for layer in range(model.layers, model.layers + model.mtp.depth):
        module = released_name(layer_name(layer))
        copies[f"{module}.embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"{module}.shared_head.head.weight"] = "lm_head.weight"
    return copies


def has_bias(model: ModelConfig) -> bool:
    """Whether checkpoints of such a model have router biases: V3's do, V2's do not."""
    return model.moe.score == "sigmoid"


def released_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a released checkpoint of such a model, by depth, and its shape; scales of
    fp8 blocks are not among them."""
    with torch.device("meta"):
        whole = whole_model(model, Ops())
    tensors = [*named_tensors(whole), *(named_biases(whole) if has_bias(model) else ())]
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
def initialise(part: ModelPart, seed: int, std: float) -> None:
    """Draw each matrix from N(0, std) with a generator seeded by the seed and its name, set norms
    to one and the router bias to zero: the same weights under every layout."""
    for name, tensor in named_tensors(part):
        if tensor.ndim == 1:
            tensor.fill_(1)
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor.copy_(torch.empty(tensor.shape).normal_(0, std, generator=generator))
    for _, bias in named_biases(part):
        bias.zero_()
