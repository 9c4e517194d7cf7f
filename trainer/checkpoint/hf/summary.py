"""What the headers of a checkpoint say it holds, and whether config.json describes that."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from parallel.files.shown import printable
from trainer.checkpoint.hf.conversion import checked_model
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.errors import CheckpointError, ConfigError
from trainer.model.names import mtp_copies, released_shapes
from trainer.model.partition import released_layer


@dataclass(frozen=True)
class Summary:
    """parameters: of the model; mtp_parameters: of its MTP modules beyond those, without the copies
    of embedding and head; both and mtp_depth are None where `problem` says what is wrong.

    tensors: as stored, scales included; bytes_by_type: by the name of the type.
    max_position_embeddings: tokens of the longest text, a run's data.sequence_length.
    """

    folder: str
    model_type: str | None
    files: int
    tensors: int
    bytes_by_type: dict[str, int]
    parameters: int | None
    mtp_parameters: int | None
    mtp_depth: int | None
    max_position_embeddings: int | None
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
        mtp = tuple(released_layer(model.layers + n) for n in range(model.mtp.depth))
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
        max_position_embeddings=checkpoint.config.get("max_position_embeddings"),
        problem=problem,
    )


def table(found: Summary) -> Table:
    """The same without the problem, for a console that takes text literally."""
    shown = Table(title=printable(found.folder), show_header=False)
    shown.add_column("what")
    shown.add_column("value", justify="right")
    shown.add_row("model_type", printable(found.model_type))
    if found.parameters is not None:
        shown.add_row("parameters", f"{found.parameters:,}")
        shown.add_row("MTP depth", str(found.mtp_depth))
        shown.add_row("parameters of MTP", f"{found.mtp_parameters:,}")
    if found.max_position_embeddings is not None:
        shown.add_row("longest text, in tokens", printable(found.max_position_embeddings))
    shown.add_row("tensors", f"{found.tensors:,}")
    shown.add_row("files", f"{found.files:,}")
    for kind, size in found.bytes_by_type.items():
        shown.add_row(f"bytes in {kind}", f"{size:,}")
    return shown
