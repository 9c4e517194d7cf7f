"""The index of a checkpoint's shards: which tensor is in which safetensors file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from parallel.files.shown import shown
from trainer.errors import CheckpointError
from trainer.io.json_object import read_json_object

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Metadata of the index: {scale: file} of the scales that are not here now, and that in fp8 were in
# a different file from their weight, as some released checkpoints have them at the end of a file.
SCALE_FILES = "scale_files"


def read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(metadata, file of each tensor). Raises CheckpointError where it is not such an index."""
    index = read_json_object(path, CheckpointError)
    files, metadata = index.get("weight_map"), index.get("metadata") or {}
    if not files or not isinstance(metadata, dict):
        raise CheckpointError(f'{path}: must have a "weight_map" from tensor to file')
    _check_files(path, files)
    _check_files(path, metadata.get(SCALE_FILES, {}))
    return metadata, files


def _check_files(path: Path, files: object) -> None:
    """Raise CheckpointError unless these are names of safetensors files of the same folder."""
    if not isinstance(files, dict):
        raise CheckpointError(f"{path}: must map tensors to files, got {shown(files)}")
    for name, file in files.items():
        if not (isinstance(file, str) and re.fullmatch(r"[^/\\\0]+\.safetensors", file)):
            raise CheckpointError(
                f"{path}: places {name} in {shown(file)}, which is not a safetensors file of this "
                "folder"
            )


def no_weights(folder: Path) -> str:
    """The error for a folder without safetensors."""
    for pattern in ("*.bin", "*.pt", "*.pth"):
        for pickle in sorted(folder.glob(pattern)):
            return (
                f"{folder}: has weights as pickles only ({pickle.name}), which run code when read: "
                "save them as safetensors"
            )
    return f"{folder}: has neither {INDEX} nor {SINGLE}"
