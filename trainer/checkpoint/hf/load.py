"""Filling a rank's part of a model from a checkpoint: each rank reads only the tensors it holds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.checkpoint.hf.architecture import with_mtp_of
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import ModelConfig
from trainer.errors import CheckpointError
from trainer.model.names import (
    has_bias,
    mtp_copies,
    named_biases,
    named_tensors,
    released_shapes,
)
from trainer.model.part import ModelPart


def require_model(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Raise CheckpointError unless the checkpoint has the tensors of `model`, and no others but of
    MTP modules that `model` leaves out."""
    has = with_mtp_of(model, checkpoint.names()).mtp.depth
    if model.mtp.depth > has:
        raise CheckpointError(
            f"{checkpoint.folder} has {has or 'no'} MTP module{'s' * (has > 1)}, but "
            f"model.mtp.depth is {model.mtp.depth}: set it to {has}"
        )
    checkpoint.require(released_shapes(model))
    checkpoint.require_nothing_else(released_shapes(with_mtp_of(model, checkpoint.names())))


@torch.no_grad()
def load_part(
    part: ModelPart,
    model: ModelConfig,
    checkpoint: Checkpoint,
    compare: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Copy the checkpoint's weights and router biases into `part`, one tensor after the other.

    `require_model` must have passed. compare: whether to compare the copies that MTP modules have
    of embedding and head with the model's; one rank of those with MTP is enough, since they are
    large. progress(done, total): bytes read of those this rank reads. Raises CheckpointError for a
    file that cannot be read, and where such a copy differs from the model's.
    """
    targets = dict(named_tensors(part))
    biases = dict(named_biases(part))
    if has_bias(model):
        targets |= biases
    else:
        for bias in biases.values():
            bias.zero_()
    copies = mtp_copies(model) if compare else {}
    copies = {copy: of for copy, of in copies.items() if _module_of(copy) in targets}
    total = sum(map(checkpoint.nbytes, [*targets, *copies]))
    done = 0
    for name, target in targets.items():
        target.copy_(checkpoint.read(name, target.dtype))
        progress(done := done + checkpoint.nbytes(name), total)
    for name, original in copies.items():
        target = targets[original]
        if not torch.equal(checkpoint.read(name, target.dtype), target.cpu()):
            raise CheckpointError(
                f"{checkpoint.folder / checkpoint.files[name]}: {name} is not {original}, which "
                "MTP shares with the model: set model.mtp.depth to leave this module out"
            )
        progress(done := done + checkpoint.nbytes(name), total)


def _module_of(copy: str) -> str:
    """A tensor that is in a part if and only if the MTP module of `copy` is."""
    return ".".join(copy.split(".")[:3]) + ".eh_proj.weight"
