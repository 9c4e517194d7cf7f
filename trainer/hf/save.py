"""Saving the weights as a checkpoint in the Hugging Face layout, from any layout of ranks.

Each rank writes the tensors of which it is the first copy to shards of its own, so nothing is
gathered; what goes into which shard is known from the shapes, so that no more than one shard is
held at a time. All ranks must see one file system.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from parallel.together import PeerError, gather, together
from trainer.config import Config
from trainer.data.file_tokenizer import load_tokenizer
from trainer.hf.architecture import CONFIG_FILE, hf_from_model, read_hf_config
from trainer.hf.blocks import SCALE_SUFFIX
from trainer.hf.companions import tokenizer_files, write_byte_tokenizer
from trainer.hf.encode import StorageType, encode, stored_bytes, stored_dtype
from trainer.hf.errors import CheckpointError
from trainer.hf.writer import (
    begin,
    commit,
    copy_file,
    discard,
    shard_file,
    split_into_shards,
    write_index,
    write_json,
    write_shard,
)
from trainer.layout import Layout
from trainer.model.named import (
    BIAS,
    depth_order,
    has_bias,
    mtp_copies,
    named_biases,
    released_name,
    released_names,
)


def save_checkpoint(
    layout: Layout, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write every weight and router bias to `folder`, replacing what is there.

    progress(done, total): bytes that this rank has written. Collective over the world. If any rank
    cannot write, every rank raises (CheckpointError where it was), and `folder` is as it was.
    """
    rank, config = layout.process.rank, layout.config
    storage = config.checkpoint.export_dtype
    tensors = owned_tensors(layout)
    sizes = {name: stored_bytes(name, tuple(t.shape), storage) for name, t in tensors.items()}
    mine = split_into_shards(sizes)
    everyone = gather([(names, sum(sizes[name] for name in names)) for names in mine])
    shards = [shard for shards in everyone for shard in shards]
    number = sum(map(len, everyone[:rank])) + 1
    files = {
        shard_file(number + here, len(shards)): {name: tensors[name] for name in names}
        for here, names in enumerate(mine)
    }
    partial: Path | None = None
    try:
        partial = gather(together(lambda: begin(folder) if rank == 0 else None))[0]
        together(lambda: _write_shards(partial, files, storage, progress))
        together(lambda: _write_beside(partial, config, shards) if rank == 0 else None)
        together(lambda: commit(partial, folder) if rank == 0 else None)
    except PeerError as error:
        raise CheckpointError(f"cannot save the weights to {folder}: {error}") from error
    finally:
        if rank == 0 and partial is not None:
            discard(partial)


def _write_shards(
    folder: Path,
    files: dict[str, dict[str, Tensor]],
    storage: StorageType,
    progress: Callable[[int, int], None],
) -> None:
    """This rank's shards, one after the other."""
    total = sum(
        stored_bytes(name, tuple(tensor.shape), storage)
        for tensors in files.values()
        for name, tensor in tensors.items()
    )
    done = 0
    for file, tensors in files.items():
        shard: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            shard |= encode(name, tensor, storage)
            done += stored_bytes(name, tuple(tensor.shape), storage)
            progress(done, total)
        write_shard(folder / file, shard)


def owned_tensors(layout: Layout) -> dict[str, Tensor]:
    """Views of the tensors that this rank saves, by depth: those of which it holds the first copy,
    and what the released checkpoints repeat of them in MTP modules."""
    rank, part, model = layout.process.rank, layout.part, layout.config.model
    owned = {name for name, ranks in layout.copies_of.items() if ranks[0] == rank}
    tensors: dict[str, Tensor] = {}
    for name, parameter in part.named_parameters():
        if name in owned:
            tensors |= released_names(name, parameter.data, layout.expert_rank)
    routers = {released_name(name) for name in owned}
    for name, bias in named_biases(part):
        # A bias has the copies of the router's weights beside it.
        if has_bias(model) and name.replace(BIAS, "weight") in routers:
            tensors[name] = bias
    for copy, original in mtp_copies(model).items():
        if original in tensors:
            tensors[copy] = tensors[original]
    return dict(sorted(tensors.items(), key=lambda item: depth_order(model, item[0])))


def _write_beside(folder: Path, config: Config, shards: list[tuple[list[str], int]]) -> None:
    """Index, config.json, tokenizer and generation_config.json; shards: names and bytes of each."""
    storage, model = config.checkpoint.export_dtype, config.model
    files: dict[str, str] = {}
    for number, (names, _) in enumerate(shards, start=1):
        for name in names:
            files[name] = shard_file(number, len(shards))
            if stored_dtype(name, storage) == torch.float8_e4m3fn:
                files[name + SCALE_SUFFIX] = files[name]
    write_index(
        folder,
        dict(sorted(files.items(), key=lambda item: depth_order(model, item[0]))),
        sum(size for _, size in shards),
    )
    source = None if model.init_from is None else Path(model.init_from)
    base = None if source is None else read_hf_config(source)
    tokenizer = config.data.tokenizer
    if base is None:
        end = load_tokenizer(tokenizer).end_of_document
        base = {"bos_token_id": None, "eos_token_id": end}
        write_json(folder / "generation_config.json", base)
    hf = hf_from_model(model, base, storage, config.data.sequence_length)
    write_json(folder / CONFIG_FILE, hf)
    _carry_tokenizer(source, tokenizer, folder)


def _carry_tokenizer(source: Path | None, tokenizer: str | None, folder: Path) -> None:
    """The files of the checkpoint that the run started from, those of data.tokenizer over them;
    with neither, the byte tokenizer."""
    given = None if tokenizer is None else Path(tokenizer).expanduser()
    if given is not None and not given.is_dir():
        given = given.parent
    if source is None and given is None:
        write_byte_tokenizer(folder)
    for place in (source, given):
        if place is not None:
            for file in tokenizer_files(place):
                copy_file(file, folder / file.name)
