"""What a conversion of a checkpoint will write: each tensor's file and type, and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import yaml

from trainer.checkpoint.hf.architecture import CONFIG_FILE, FP8_BLOCKS, model_from_hf, with_mtp_of
from trainer.checkpoint.hf.encode import stored_dtype
from trainer.checkpoint.hf.fp8_blocks import SCALE_SUFFIX, scale_shape
from trainer.checkpoint.hf.index import SCALE_FILES
from trainer.checkpoint.hf.reader import Checkpoint, Stored
from trainer.config.schema import ModelConfig, StorageType
from trainer.config.validate import model_problems
from trainer.errors import ConfigError
from trainer.model.names import released_shapes
from trainer.model.partition import released_layer

Choice: TypeAlias = StorageType | Literal["keep"]
_FP8 = torch.float8_e4m3fn
_MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")


@dataclass(frozen=True)
class Conversion:
    """files: of each tensor that is written, scales included, in order of the index; tensors: their
    shape and type there; scale_files: scales that are left out and were in a different file from
    their weight."""

    source: Checkpoint
    config: dict[str, Any]
    files: dict[str, str]
    tensors: dict[str, Stored]
    scale_files: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def by_file(self) -> dict[str, list[str]]:
        """The names of the tensors of each file, in order."""
        found: dict[str, list[str]] = {}
        for name, file in self.files.items():
            found.setdefault(file, []).append(name)
        return found


def checked_model(source: Checkpoint) -> ModelConfig:
    """The model of a checkpoint, after checking that every tensor is as config.json says.

    It has the MTP modules that are there. Raises ConfigError for a config.json that is not
    supported, CheckpointError for a tensor that is missing, unexpected, or not what it should be.
    """
    where = str(source.folder / CONFIG_FILE)
    model = with_mtp_of(model_from_hf(source.config, where), source.names())
    experts = (model.layers - model.dense_layers) * model.moe.experts
    if max(model.layers, experts) > len(source.names()):  # before a model of that size is built
        raise ConfigError(
            f"{where}: num_hidden_layers {model.layers} and n_routed_experts {model.moe.experts} "
            f"are more than the {len(source.names())} tensors of the checkpoint can be"
        )
    for problem in model_problems(model):
        raise ConfigError(f"{where}: {problem}")
    shapes = released_shapes(model)
    source.require(shapes)
    source.require_nothing_else(shapes)
    return model


def model_section(source: Checkpoint) -> str:
    """The `model:` section, as YAML, of a run that starts from this checkpoint. Raises what
    `checked_model` raises."""
    model = replace(checked_model(source), init_from=str(source.folder.resolve()))
    return yaml.safe_dump({"model": asdict(model)}, sort_keys=False)


def plan_conversion(source: Checkpoint, choice: Choice, without_mtp: bool) -> Conversion:
    """Check the source and decide what becomes of it; every tensor stays in the file of its name.

    keep leaves types as they are, the others are those of `stored_dtype`. Raises what
    `checked_model` raises.
    """
    model = checked_model(source)
    shapes = released_shapes(model)
    depth = 0 if without_mtp else model.mtp.depth
    for layer in range(model.layers + depth, model.layers + model.mtp.depth):
        shapes = {n: s for n, s in shapes.items() if not n.startswith(released_layer(layer))}
    files: dict[str, str] = {}
    tensors: dict[str, Stored] = {}
    scale_files: dict[str, str] = dict(source.metadata.get(SCALE_FILES, {}))
    for name, file in source.files.items():
        weight = name.removesuffix(SCALE_SUFFIX)
        if weight not in shapes:
            continue
        dtype = source.dtype(weight) if choice == "keep" else stored_dtype(weight, choice)
        if weight != name:
            if dtype == _FP8:
                files[name], tensors[name] = file, source.stored(name)
            elif file != source.files[weight]:
                scale_files[name] = file
            continue
        files[name], tensors[name] = file, Stored(shapes[name], dtype)
        scale = name + SCALE_SUFFIX
        if dtype == _FP8 and scale not in source:
            files[scale] = scale_files.get(scale, file)
            tensors[scale] = Stored(scale_shape(shapes[name]), torch.float32)
    left_out = {
        scale: file
        for scale, file in scale_files.items()
        if scale not in files and scale.removesuffix(SCALE_SUFFIX) in files
    }
    config = _config(source.config, choice, depth)
    return Conversion(source, config, files, tensors, left_out)


def _config(source: Mapping[str, Any], choice: Choice, depth: int) -> dict[str, Any]:
    """config.json of the target: the source's, except for types, MTP depth and `auto_map`, which
    names Python files that are not carried over."""
    config = {key: value for key, value in source.items() if key != "auto_map"}
    for key in _MTP_KEYS:
        if key in config:
            config[key] = depth
    if choice == "keep":
        return config
    type_key = "dtype" if "dtype" in config else "torch_dtype"
    config[type_key] = "bfloat16" if choice == "fp8" else choice
    if choice != "fp8":
        config.pop("quantization_config", None)
    elif not config.get("quantization_config"):
        in_order = list(source) == sorted(source)  # as transformers writes it
        config["quantization_config"] = FP8_BLOCKS
        config = dict(sorted(config.items())) if in_order else config
    return config
