"""A tensor of the model as the tensors and types that a checkpoint holds it in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.checkpoint.hf.fp8_blocks import SCALE_SUFFIX, is_block_quantised, quantise, scale_shape
from trainer.config.schema import StorageType
from trainer.errors import CheckpointError
from trainer.model.names import BIAS


def stored_dtype(name: str, storage: StorageType) -> torch.dtype:
    """The type of one tensor: a router bias is float32 at least, as released, and fp8 is for
    matrices."""
    if name.endswith(BIAS):
        return torch.float64 if storage == "float64" else torch.float32
    if storage == "fp8":
        return torch.float8_e4m3fn if is_block_quantised(name) else torch.bfloat16
    return {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}[storage]


def stored_bytes(name: str, shape: tuple[int, ...], storage: StorageType) -> int:
    """Bytes of a tensor as it will be stored, its scales included."""
    dtype = stored_dtype(name, storage)
    size = math.prod(shape) * dtype.itemsize
    if dtype == torch.float8_e4m3fn:
        size += math.prod(scale_shape(shape)) * torch.float32.itemsize
    return size


def encode(name: str, tensor: Tensor, storage: StorageType) -> dict[str, Tensor]:
    """The tensor in memory of its own, by name; followed by its scales where it is fp8.

    Raises CheckpointError for a value that is not finite, or is not in this type: a checkpoint that
    looks whole is one that can be used.
    """
    dtype = stored_dtype(name, storage)
    if dtype == torch.float8_e4m3fn:
        try:
            codes, scales = quantise(tensor.float().cpu().contiguous())
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        return {name: codes, name + SCALE_SUFFIX: scales}
    # A copy: safetensors refuses tensors that share memory, as a rank's experts do.
    stored = tensor.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    # The extremes tell, without a mask of the tensor's size: NaN is the extreme of any values.
    if stored.numel() and not all(extreme.isfinite() for extreme in stored.aminmax()):
        raise CheckpointError(f"{name}: has a value that is not finite as {storage}")
    return {name: stored}
