"""What a checkpoint folder holds, and whether that is what its config.json describes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainer.checkpoint.hf.conversion import checked_model
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.errors import CheckpointError, ConfigError
from trainer.model.names import mtp_copies, released_shapes


@dataclass(frozen=True)
class Summary:
    """parameters: of the model; mtp_parameters: of its MTP modules beyond those, without the copies
    of embedding and head; both and mtp_depth are None where `problem` says what is wrong.

    tensors: as stored, scales included; bytes_by_type: by the name of the type.
    """

    folder: str
    model_type: str | None
    files: int
    tensors: int
    bytes_by_type: dict[str, int]
    parameters: int | None
    mtp_parameters: int | None
    mtp_depth: int | None
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(checkpoint: Checkpoint) -> Summary:
    """Describe a checkpoint from its headers, and check them; a problem is reported, not raised."""
    names = checkpoint.names()
    bytes_by_type: dict[str, int] = {}
    for name in names:
        kind = str(checkpoint.dtype(name)).removeprefix("torch.")
        bytes_by_type[kind] = bytes_by_type.get(kind, 0) + checkpoint.stored(name).nbytes
    parameters = mtp_parameters = depth = problem = None
    try:
        model = checked_model(checkpoint)
        shapes, copies = released_shapes(model), mtp_copies(model)
        sizes = {name: math.prod(shape) for name, shape in shapes.items() if name not in copies}
        mtp = tuple(f"model.layers.{model.layers + n}." for n in range(model.mtp.depth))
        depth = model.mtp.depth
        mtp_parameters = sum(size for name, size in sizes.items() if name.startswith(mtp))
        parameters = sum(sizes.values()) - mtp_parameters
    except (ConfigError, CheckpointError) as error:
        problem = str(error)
    return Summary(
        folder=str(checkpoint.folder),
        model_type=checkpoint.config.get("model_type"),
        files=len(checkpoint.shards()),
        tensors=len(names),
        bytes_by_type=bytes_by_type,
        parameters=parameters,
        mtp_parameters=mtp_parameters,
        mtp_depth=depth,
        problem=problem,
    )
