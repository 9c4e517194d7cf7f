"""Reading a checkpoint in the Hugging Face layout: config.json, safetensors, their index."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parallel.files.regular import require_regular
from trainer.checkpoint.hf.architecture import CONFIG_FILE
from trainer.checkpoint.hf.finite import all_finite
from trainer.checkpoint.hf.fp8_blocks import SCALE_SUFFIX, dequantise, scale_shape
from trainer.checkpoint.hf.index import INDEX, SINGLE, no_weights, read_index
from trainer.errors import CheckpointError
from trainer.io.json_object import read_json_object

_FP8 = torch.float8_e4m3fn
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, _FP8)
# The names of safetensors' header (github.com/huggingface/safetensors, "Format").
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": _FP8,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Tensors that older writers left behind and that no reader uses.
_HARMLESS = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A folder with config.json and model.safetensors, or shards of it with an index.

    folder: where it is; config: its config.json; metadata: that of its index; files: the file of
    each tensor, in order of the index (of the header where there is none).
    """

    def __init__(self, folder: Path) -> None:
        """Read config, index and the header of every file, no data.

        Raises CheckpointError for what is missing, cut short or not what its name says.
        """
        if not os.path.isdir(folder):
            raise CheckpointError(f"{folder}: there is no such folder")
        self.folder = folder
        self.config = read_json_object(folder / CONFIG_FILE, CheckpointError)
        self.metadata: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        if os.path.lexists(folder / INDEX):
            self.metadata, self.files = read_index(folder / INDEX)
        elif not os.path.lexists(folder / SINGLE):
            raise CheckpointError(no_weights(folder))
        self._stored: dict[str, Stored] = {}
        indexed = bool(self.files)
        for file in self.shards() or [SINGLE]:
            self._read_header(file, indexed)

    def _read_header(self, file: str, indexed: bool) -> None:
        with _opened(self.folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if not indexed:
                    self.files[name] = file
                elif self.files.get(name) != file and not name.endswith(_HARMLESS):
                    raise CheckpointError(
                        f"{self.folder / file}: has {name}, which {INDEX} "
                        + (f"places in {self.files[name]}" if name in self.files else "lacks")
                    )
                kind = tensors.get_slice(name).get_dtype()
                if kind not in _DTYPES:
                    raise CheckpointError(
                        f"{self.folder / file}: {name} is stored as {kind}, which cannot be read"
                    )
                shape = tuple(tensors.get_slice(name).get_shape())
                self._stored[name] = Stored(shape, _DTYPES[kind])

    def shards(self) -> list[str]:
        """The names of the files, in order of the index."""
        return list(dict.fromkeys(self.files.values()))

    def names(self) -> list[str]:
        """The tensors that are there, in order of the index; scales too."""
        return [name for name in self.files if name in self._stored]

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def stored(self, name: str) -> Stored:
        if name not in self:
            raise CheckpointError(f"{self.folder}: {name} is missing")
        return self._stored[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """As stored: float8_e4m3fn for a weight in fp8 blocks."""
        return self.stored(name).dtype

    def nbytes(self, name: str) -> int:
        """As stored, its scale included."""
        scale = name + SCALE_SUFFIX
        own = self.stored(name).nbytes
        return own + (self._stored[scale].nbytes if scale in self else 0)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor as `dtype`, in memory of its own.

        fp8 blocks are multiplied with their scale, unless they are asked for as float8_e4m3fn: then
        these are the codes, and the scale is a tensor to be read by its own name. Needs the memory
        of the result, and while it reads that of the tensor as stored. Raises CheckpointError for
        a tensor that cannot be read, or is not finite as `dtype`.
        """
        stored = self.stored(name).dtype
        with _opened(self.folder / self.files[name]) as tensors:
            tensor = tensors.get_tensor(name)  # a view of the file, mapped into memory
            if stored != _FP8 or dtype == _FP8:
                result = tensor.to(dtype, copy=True)
            else:
                result = dequantise(tensor, self.read(name + SCALE_SUFFIX, torch.float32), dtype)
        self._require_finite(name, result)
        return result

    def require_finite(self, file: str) -> None:
        """Raise CheckpointError for the first tensor of a file with a value that is not finite."""
        with _opened(self.folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                self._require_finite(name, tensors.get_tensor(name))

    def _require_finite(self, name: str, tensor: Tensor) -> None:
        if not all_finite(tensor):
            raise CheckpointError(
                f"{self._where(name)} has values that are not finite as {_words(tensor.dtype)} "
                "(nan or infinity), so the model cannot compute: use weights saved before that"
            )

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError for the first of these tensors that is missing, has another shape,
        is of a type other than float, or is in fp8 without the scale that belongs to it."""
        for name, shape in shapes.items():
            self._require_one(name, shape)
            if self.dtype(name) == _FP8:
                if len(shape) != 2:
                    raise CheckpointError(f"{self._where(name)} is in fp8, but is not a matrix")
                scale = name + SCALE_SUFFIX
                self._require_one(scale, scale_shape(shape))
                if self.dtype(scale) != torch.float32:
                    raise CheckpointError(
                        f"{self._where(scale)} is {_words(self.dtype(scale))}, expected float32"
                    )

    def _require_one(self, name: str, shape: tuple[int, ...]) -> None:
        expected = f"expected shape {list(shape)}"
        if name not in self:
            if name in self.files:
                path = self.folder / self.files[name]
                raise CheckpointError(f"{path}: {name} is missing, {expected} ({INDEX} names it)")
            raise CheckpointError(f"{self.folder}: {name} is missing, {expected}")
        if self.shape(name) != shape:
            found = list(self.shape(name))
            raise CheckpointError(f"{self._where(name)} has shape {found}, {expected}")
        if self.dtype(name) not in _FLOATS:
            floats = ", ".join(map(_words, _FLOATS))
            raise CheckpointError(
                f"{self._where(name)} is {_words(self.dtype(name))}, expected one of {floats}"
            )

    def require_nothing_else(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError for a tensor that is not among these (nor the scale of one in fp8):
        a model that reads it would be another function."""
        for name in self.files:
            weight = name.removesuffix(SCALE_SUFFIX)
            is_scale = weight != name and weight in self and self.dtype(weight) == _FP8
            if not name.endswith(_HARMLESS) and (weight if is_scale else name) not in shapes:
                raise CheckpointError(
                    f"{self._where(name)} has no place in the model that {CONFIG_FILE} describes"
                )

    def _where(self, name: str) -> str:
        return f"{self.folder / self.files[name]}: {name}"


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever goes wrong with it becomes one line that names it."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: there is no such file: fetch it")
    size = require_regular(path, CheckpointError)
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is cut short or not a safetensors file ({size:,} bytes; {error}): "
            "fetch it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
