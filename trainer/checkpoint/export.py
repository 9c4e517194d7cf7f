"""Saving the weights as a checkpoint in the Hugging Face layout, from any layout of ranks.

Each rank writes the tensors of which it is the first copy to shards of its own, so nothing is
gathered; what goes into which shard is known from the shapes, so that no more than one shard is
held at a time. All ranks must see one file system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from parallel.ranks.together import PeerError, gather, together
from trainer.build.layout import Layout
from trainer.checkpoint.hf.architecture import CONFIG_FILE
from trainer.checkpoint.hf.companions import Companions
from trainer.checkpoint.hf.config_json import hf_from_model
from trainer.checkpoint.hf.encode import encode, stored_bytes, stored_dtype
from trainer.checkpoint.hf.fp8_blocks import SCALE_SUFFIX
from trainer.checkpoint.hf.output_folder import OutputFolder, require_room
from trainer.checkpoint.hf.writer import (
    shard_file,
    split_into_shards,
    write_bytes,
    write_index,
    write_json,
    write_shard,
)
from trainer.config.schema import Config
from trainer.errors import CheckpointError, RunError
from trainer.model.names import (
    BIAS,
    depth_order,
    expert_names,
    has_bias,
    mtp_copies,
    named_biases,
    released_name,
    released_names,
)


def save_checkpoint(
    layout: Layout,
    folder: Path,
    companions: Companions | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write every weight and router bias to `folder`, replacing what is there.

    companions: files that go beside the weights; the first rank must have them. progress(done,
    total): bytes that this rank has written. Collective over the world. If any rank cannot write,
    or has a weight that is not finite, every rank raises CheckpointError, and `folder` is as it
    was.
    """
    rank, storage = layout.process.rank, layout.config.checkpoint.export_dtype
    tensors = owned_tensors(layout)
    sizes = _sizes(layout, tensors)
    mine = split_into_shards(sizes)
    everyone = gather([(names, sum(sizes[name] for name in names)) for names in mine])
    shards = [shard for shards in everyone for shard in shards]
    first = sum(map(len, everyone[:rank])) + 1
    files = {shard_file(first + here, len(shards)): names for here, names in enumerate(mine)}

    def open_output() -> AbstractContextManager[OutputFolder | None]:
        if rank > 0:
            return nullcontext()
        require_room(folder, sum(size for _, size in shards), " on this disk")
        return OutputFolder(folder)

    def write_shards(partial: Path) -> None:
        done, total = 0, sum(sizes.values())
        for file, names in files.items():
            shard: dict[str, Tensor] = {}
            for name in names:
                shard |= encode(name, tensors[name], storage)
                progress(done := done + sizes[name], total)
            write_shard(partial / file, shard)

    def write_beside(partial: Path) -> None:
        if rank == 0:
            assert companions is not None
            _write_beside(partial, layout.config, companions, shards)

    try:
        with together(open_output, layout.patience) as output:
            partial: Path = gather(output.partial if output else None)[0]
            together(lambda: write_shards(partial), layout.patience)
            together(lambda: write_beside(partial), layout.patience)
            together(lambda: output.commit() if output else None, layout.patience)
    except (PeerError, RunError) as error:
        raise CheckpointError(f"cannot save the weights to {folder}: {error}") from error


def checkpoint_bytes(layout: Layout) -> int:
    """Bytes that the tensors of a saved checkpoint have, over all ranks. Collective."""
    return sum(gather(sum(_sizes(layout, owned_tensors(layout)).values())))


def _sizes(layout: Layout, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Bytes of each tensor as it will be stored."""
    storage = layout.config.checkpoint.export_dtype
    return {name: stored_bytes(name, tuple(t.shape), storage) for name, t in tensors.items()}


def owned_tensors(layout: Layout) -> dict[str, Tensor]:
    """Views of the tensors that this rank saves, by depth: those of which it holds the first copy,
    and what the released checkpoints repeat of them in MTP modules."""
    rank, part, model = layout.process.rank, layout.part, layout.config.model
    owned = {name for name, ranks in layout.copies_of.items() if ranks[0] == rank}
    tensors: dict[str, Tensor] = {}
    for name, parameter in part.named_parameters():
        if name in owned:
            tensors |= released_names(part, name, parameter.data)
    for name in _saved_by_others(layout):
        tensors.pop(name, None)
    routers = {released_name(name) for name in owned}
    for name, bias in named_biases(part):
        # A bias has the copies of the router's weights beside it.
        if has_bias(model) and name.replace(BIAS, "weight") in routers:
            tensors[name] = bias
    for copy, original in mtp_copies(model).items():
        if original in tensors:
            tensors[copy] = tensors[original]
    return dict(sorted(tensors.items(), key=lambda item: depth_order(model, item[0])))


def _saved_by_others(layout: Layout) -> Iterator[str]:
    """Tensors of redundant experts that this rank holds and the first of their homes saves."""
    rank = layout.expert_rank
    for layer, placement in layout.placements.items():
        away = [e for e in placement.held[rank] if placement.homes[e][0][0] != rank]
        for expert in away:
            yield from expert_names(layer, expert)


def _write_beside(
    folder: Path, config: Config, companions: Companions, shards: list[tuple[list[str], int]]
) -> None:
    """Index, config.json and companions; shards: names and bytes of each."""
    storage, model = config.checkpoint.export_dtype, config.model
    files: dict[str, str] = {}
    for number, (names, _) in enumerate(shards, start=1):
        for name in names:
            files[name] = shard_file(number, len(shards))
            if stored_dtype(name, storage) == torch.float8_e4m3fn:
                files[name + SCALE_SUFFIX] = files[name]
    by_depth = dict(sorted(files.items(), key=lambda item: depth_order(model, item[0])))
    write_index(folder, by_depth, sum(size for _, size in shards))
    hf = hf_from_model(model, companions.base, storage, config.data.sequence_length)
    write_json(folder / CONFIG_FILE, hf)
    for name, content in companions.files.items():
        write_bytes(folder / name, content)
