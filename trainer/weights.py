"""Saving the weights as safetensors by parameter name, from any layout.

Each rank writes the tensors of which it is the first copy to a file of its own, so nothing is
gathered; an index in Hugging Face's layout says which tensor is in which file. The folder gets its
name only when it is whole. All ranks must see one file system.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from parallel.together import PeerError, gather, together
from trainer.errors import RunError
from trainer.layout import Layout
from trainer.model.named import named_biases, released_names


def save_weights(layout: Layout, folder: Path) -> None:
    """Write every weight and router bias to `folder`, replacing what is there.

    Collective over the world. If any rank cannot write, every rank raises (RunError where it was),
    and `folder` is as it was.
    """
    rank, partial = layout.process.rank, folder.with_name(folder.name + ".partial")
    tensors = _owned(layout)
    owners = [r for r, count in enumerate(gather(len(tensors))) if count]
    file = f"model-{owners.index(rank) + 1:05d}-of-{len(owners):05d}.safetensors" if tensors else ""
    size = sum(tensor.nbytes for tensor in tensors.values())
    shards = gather((file, list(tensors), size))
    with _saying(folder):
        together(lambda: _clean(partial) if rank == 0 else None)
        together(lambda: _save(tensors, partial / file) if tensors else None)
        together(lambda: _finish(partial, folder, _index(shards)) if rank == 0 else None)


@contextmanager
def _saying(folder: Path) -> Iterator[None]:
    """Make whatever goes wrong one line that says what was being written."""
    try:
        yield
    except (OSError, SafetensorError, PeerError) as error:
        raise RunError(f"cannot save the weights to {folder}: {error}") from error


def _index(shards: list[tuple[str, list[str], int]]) -> dict[str, Any]:
    weight_map = {name: file for file, names, _ in shards for name in names}
    return {
        "metadata": {"total_size": sum(size for _, _, size in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }


def _owned(layout: Layout) -> dict[str, Tensor]:
    """The tensors that this rank saves: those of which it holds the first copy."""
    rank, part = layout.process.rank, layout.part
    owned = {name for name, ranks in layout.copies_of.items() if ranks[0] == rank}
    tensors: dict[str, Tensor] = {}
    for name, parameter in part.named_parameters():
        if name in owned:
            for own_name, tensor in released_names(name, parameter.data, layout.expert_rank):
                # clone: safetensors refuses tensors that share memory, as a rank's experts do.
                tensors[own_name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    for name, bias in named_biases(part):
        # A bias has the copies of the router's weights beside it.
        if name.replace("e_score_correction_bias", "weight") in owned:
            tensors[name] = bias.cpu()
    return tensors


def _clean(partial: Path) -> None:
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes files that only their owner can read


def _finish(partial: Path, folder: Path, index: dict[str, Any]) -> None:
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
