"""From a checkpoint folder to another with its weights in another type, file by file.

Memory: the tensors of one file of the target, and one tensor of the source.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trainer.hf.architecture import CONFIG_FILE
from trainer.hf.blocks import SCALE_SUFFIX, quantise
from trainer.hf.companions import tokenizer_files
from trainer.hf.errors import CheckpointError
from trainer.hf.plan import Plan
from trainer.hf.reader import INDEX, SCALE_FILES, Checkpoint
from trainer.hf.writer import (
    begin,
    commit,
    copy_file,
    discard,
    write_index,
    write_json,
    write_shard,
)

_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")


def require_place(plan: Plan, target: Path, overwrite: bool) -> None:
    """Raise CheckpointError unless `target` may be written and has room on its disk."""
    source, target = plan.source.folder.resolve(), target.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise CheckpointError(f"{target}: must lie outside of the source, {source}")
    if os.path.lexists(target):
        if not (target / CONFIG_FILE).is_file():
            raise CheckpointError(f"{target}: exists and is no checkpoint: choose another folder")
        if not overwrite:
            raise CheckpointError(f"{target}: exists: choose another, or replace it by --overwrite")
    disk = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < plan.nbytes:
        raise CheckpointError(
            f"{target}: needs {plan.nbytes / 1e9:,.1f} GB, {disk} has {free / 1e9:,.1f} GB left: "
            "make room or choose another disk"
        )


def convert(plan: Plan, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write what was planned to the folder `target`, replacing what is there.

    progress(done, total): bytes of the tensors that have been converted or copied. Whatever ends
    this early, Ctrl-C too, leaves `target` as it was; a kill leaves TARGET.partial besides. Raises
    CheckpointError.
    """
    target = target.resolve()
    partial = begin(target)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        progress(done := done + size, plan.nbytes)

    try:
        for file, names in plan.by_file().items():
            if _is_unchanged(plan, file):
                copy_file(plan.source.folder / file, partial / file)
                advance(sum(plan.tensors[name].nbytes for name in names))
            else:
                write_shard(partial / file, _tensors(plan, file, names, advance))
        for path in [*tokenizer_files(plan.source.folder), *_licences(plan.source.folder)]:
            copy_file(path, partial / path.name)
        _write_index(plan, partial)
        _write_config(plan, partial)  # last: what has none does not look like a checkpoint
        commit(partial, target)
    except BaseException:
        discard(partial)
        raise


def _is_unchanged(plan: Plan, file: str | None = None) -> bool:
    """Whether one file of the target, or all, hold what they hold in the source."""
    source = plan.source
    files = [
        {name: where for name, where in each.items() if file in (None, where)}
        for each in (source.files, plan.files)
    ]
    return files[0] == files[1] and all(
        source.stored(name) == plan.tensors[name] for name in files[0]
    )


def _tensors(
    plan: Plan, file: str, names: list[str], advance: Callable[[int], None]
) -> dict[str, Tensor]:
    """The tensors of one file of the target."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        weight, dtype = name.removesuffix(SCALE_SUFFIX), plan.tensors[name].dtype
        if name in plan.source and plan.source.dtype(name) == dtype:
            tensors[name] = plan.source.read(name, dtype)
        elif weight != name:
            if plan.files[weight] != file:  # else it was made with its weight
                tensors[name] = _quantised(plan.source, weight)[1]
        elif dtype == torch.float8_e4m3fn:
            tensors[name], scale = _quantised(plan.source, name)
            if plan.files[name + SCALE_SUFFIX] == file:
                tensors[name + SCALE_SUFFIX] = scale
        else:
            tensors[name] = plan.source.read(name, dtype)
        advance(plan.tensors[name].nbytes)
    return tensors


def _quantised(source: Checkpoint, name: str) -> tuple[Tensor, Tensor]:
    try:
        return quantise(source.read(name, torch.float32))
    except CheckpointError as error:
        path = source.folder / source.files[name]
        raise CheckpointError(f"{path}: {name}: {error}") from error


def _licences(folder: Path) -> list[Path]:
    return sorted(path for pattern in _LICENCES for path in folder.glob(pattern) if path.is_file())


def _write_index(plan: Plan, partial: Path) -> None:
    source = plan.source
    if not (source.folder / INDEX).exists():
        return
    if _is_unchanged(plan):
        copy_file(source.folder / INDEX, partial / INDEX)
        return
    more = {k: v for k, v in source.metadata.items() if k not in ("total_size", SCALE_FILES)}
    if plan.scale_files:
        more[SCALE_FILES] = plan.scale_files
    write_index(partial, plan.files, plan.nbytes, more)


def _write_config(plan: Plan, partial: Path) -> None:
    if plan.config == plan.source.config:
        copy_file(plan.source.folder / CONFIG_FILE, partial / CONFIG_FILE)
    else:
        write_json(partial / CONFIG_FILE, plan.config)
