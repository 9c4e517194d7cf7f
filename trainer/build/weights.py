"""The weights that a run starts from."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from parallel.ranks.together import of_first
from trainer.checkpoint.hf.load import load_part, require_model
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.config.schema import Config
from trainer.model.names import initialise
from trainer.model.part import ModelPart


def open_weights(config: Config, patience: timedelta) -> Checkpoint | None:
    """The checkpoint of model.init_from; None where weights are random.

    The first rank reads the headers of all its files, for every rank: they are 163 in DeepSeek-V3.
    Collective over the world. Raises CheckpointError there, and PeerError on the others, where it
    cannot be read or is another model.
    """
    model = config.model
    if model.init_from is None:
        return None
    folder = Path(model.init_from).expanduser()

    def read() -> Checkpoint:
        checkpoint = Checkpoint(folder)
        require_model(checkpoint, model)
        return checkpoint

    return of_first(read, patience)


def set_weights(
    part: ModelPart,
    config: Config,
    checkpoint: Checkpoint | None,
    compare: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Random weights, or those of `checkpoint`; compare: see load_part."""
    if checkpoint is None:
        initialise(part, config.run.seed, config.model.init_std)
    else:
        load_part(part, config.model, checkpoint, compare, progress)
