"""The weights that a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint.hf.load import load_part, require_model
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import Config
from trainer.model.names import initialise
from trainer.model.part import ModelPart


def set_weights(
    part: ModelPart, config: Config, compare: bool, progress: Callable[[int, int], None]
) -> None:
    """Random weights, or those of model.init_from; compare: see load_part."""
    model = config.model
    if model.init_from is None:
        initialise(part, config.run.seed, model.init_std)
        return
    checkpoint = Checkpoint(Path(model.init_from).expanduser())
    require_model(checkpoint, model)
    load_part(part, model, checkpoint, compare, progress)
