"""From one checkpoint folder to another with another type of weights, file by file.

Memory: the tensors of one file of the target, and one tensor of the source.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.hf.architecture import CONFIG_FILE
from trainer.checkpoint.hf.companions import carried_files, tokenizer_files
from trainer.checkpoint.hf.conversion import Conversion
from trainer.checkpoint.hf.fp8_blocks import SCALE_SUFFIX, quantise
from trainer.checkpoint.hf.index import INDEX, SCALE_FILES
from trainer.checkpoint.hf.output_folder import OutputFolder, require_room, scratch
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.checkpoint.hf.writer import (
    copy_file,
    write_index,
    write_json,
    write_shard,
)
from trainer.errors import CheckpointError, Stopped

_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")


def require_place(conversion: Conversion, target: Path, overwrite: bool) -> None:
    """Raise CheckpointError unless `target` may be written and has room on its disk."""
    source, target = conversion.source.folder.resolve(), target.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise CheckpointError(f"{target}: must lie outside of the source, {source}")
    if scratch(target) in (source, *source.parents):
        raise CheckpointError(
            f"{source}: lies in {scratch(target)}, which is for writing {target}: move it first"
        )
    if os.path.lexists(target):
        if not os.path.isfile(target / CONFIG_FILE):
            raise CheckpointError(
                f"{target}: exists and is not a checkpoint: choose another folder"
            )
        if not overwrite:
            raise CheckpointError(f"{target}: exists: choose another, or replace it by --overwrite")
    require_room(target, conversion.nbytes, " or choose another disk")


def convert(conversion: Conversion, target: Path, progress: Callable[[int, int], None]) -> float:
    """Write what was planned to the folder `target`, replacing what is there; the seconds it took.

    progress(done, total): bytes of the tensors that have been converted or copied. Whatever ends
    this early, Ctrl-C too, leaves `target` as it was or, at the last moment, the new one, and
    nothing else; a kill leaves `scratch(target)`. Raises CheckpointError, also for values that are
    not finite, and where another process is writing `target`; Stopped for Ctrl-C, which says
    whether `target` is the new one.
    """
    started, before = time.monotonic(), _identity(target)
    try:
        _convert(conversion, target, progress)
    except KeyboardInterrupt as error:
        written = _identity(target) not in (None, before)
        what = f"{target} is written and whole" if written else "nothing written"
        raise Stopped(signal.SIGINT, f"stopped by Ctrl-C, {what}") from error
    return time.monotonic() - started


def _identity(folder: Path) -> int | None:
    """A number that changes when another folder takes this one's place; None if there is none."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _convert(conversion: Conversion, target: Path, progress: Callable[[int, int], None]) -> None:
    target = target.resolve()
    done, total = 0, conversion.nbytes
    unchanged = _unchanged_files(conversion)
    source = conversion.source.folder
    beside = [*tokenizer_files(source), *carried_files(source, _LICENCES)]

    def advance(size: int) -> None:
        nonlocal done
        progress(done := done + size, total)

    with OutputFolder(target) as output:
        partial = output.partial
        for file, names in conversion.by_file().items():
            if file in unchanged:
                conversion.source.require_finite(file)
                copy_file(source / file, partial / file)
                advance(sum(conversion.tensors[name].nbytes for name in names))
            else:
                write_shard(partial / file, _tensors(conversion, file, names, advance))
        for path in beside:
            copy_file(path, partial / path.name)
        _write_index(conversion, partial, unchanged)
        _write_config(conversion, partial)  # last: a folder without it is no checkpoint yet
        output.commit()


def _unchanged_files(conversion: Conversion) -> set[str]:
    """The files of the target with the same tensors as in the source."""
    source = conversion.source
    changed = {file for name, file in source.files.items() if conversion.files.get(name) != file}
    for name, file in conversion.files.items():
        if source.files.get(name) != file or source.stored(name) != conversion.tensors[name]:
            changed.add(file)
    return set(conversion.files.values()) - changed


def _tensors(
    conversion: Conversion, file: str, names: list[str], advance: Callable[[int], None]
) -> dict[str, Tensor]:
    """The tensors of one file of the target."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        weight, dtype = name.removesuffix(SCALE_SUFFIX), conversion.tensors[name].dtype
        if name in conversion.source and conversion.source.dtype(name) == dtype:
            tensors[name] = conversion.source.read(name, dtype)
        elif weight != name:
            if conversion.files[weight] != file:  # else it was made with its weight
                tensors[name] = _quantised(conversion.source, weight)[1]
        elif dtype == torch.float8_e4m3fn:
            tensors[name], scale = _quantised(conversion.source, name)
            if conversion.files[name + SCALE_SUFFIX] == file:
                tensors[name + SCALE_SUFFIX] = scale
        else:
            tensors[name] = conversion.source.read(name, dtype)
        advance(conversion.tensors[name].nbytes)
    return tensors


def _quantised(source: Checkpoint, name: str) -> tuple[Tensor, Tensor]:
    try:
        return quantise(source.read(name, torch.float32))
    except CheckpointError as error:
        path = source.folder / source.files[name]
        raise CheckpointError(f"{path}: {name}: {error}") from error


def _write_index(conversion: Conversion, partial: Path, unchanged: set[str]) -> None:
    source = conversion.source
    if not (source.folder / INDEX).exists():
        return
    if unchanged == {*source.files.values(), *conversion.files.values()}:
        copy_file(source.folder / INDEX, partial / INDEX)
        return
    more = {k: v for k, v in source.metadata.items() if k not in ("total_size", SCALE_FILES)}
    if conversion.scale_files:
        more[SCALE_FILES] = conversion.scale_files
    write_index(partial, conversion.files, conversion.nbytes, more)


def _write_config(conversion: Conversion, partial: Path) -> None:
    if conversion.config == conversion.source.config:
        copy_file(conversion.source.folder / CONFIG_FILE, partial / CONFIG_FILE)
    else:
        write_json(partial / CONFIG_FILE, conversion.config)
