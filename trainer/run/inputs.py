"""The files that a run reads, none of which may lie in the folder that it replaces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.config.schema import Config
from trainer.config.sources import named_sources
from trainer.errors import ConfigError


def require_inputs_outside(folder: Path, config: Config, config_files: Sequence[str]) -> None:
    """Raise ConfigError if the run reads anything in `folder`, also by way of links.

    config_files: that of --config, and those that it extends.
    """
    for key, value in _inputs(config, config_files):
        for path in _with_links_below(Path(value).expanduser()):
            if _is_in(path, folder):
                which = value if str(path) == value else f"{value} ({path})"
                raise ConfigError(
                    f"run.overwrite: {key} is {which}, in the run folder {folder} that would be "
                    "replaced: move it elsewhere, choose another run.name, or leave out "
                    "run.overwrite to get a new folder"
                )


def _inputs(config: Config, config_files: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from (("--config", file) for file in config_files)
    for key, path in (
        ("data.path", config.data.path),
        ("data.tokenizer", config.data.tokenizer),
        ("model.init_from", config.model.init_from),
        ("pipeline.schedule_file", config.pipeline.schedule_file),
    ):
        if path is not None:
            yield key, path
    for source in named_sources(config.data.mixture) if config.data.mixture is not None else ():
        yield "data.mixture", source.path


def _with_links_below(path: Path) -> Iterator[Path]:
    """The path and, where it is a folder, all links in it: what they lead to is read too."""
    yield path
    for root, folders, files in os.walk(path):
        yield from (link for name in folders + files if (link := Path(root, name)).is_symlink())


def _is_in(path: Path, folder: Path) -> bool:
    """Whether the path, or what it leads to, is the folder or in it."""
    place, name = os.path.realpath(path.parent), path.name
    return any(
        Path(form).is_relative_to(os.path.realpath(folder))
        for form in (os.path.normpath(os.path.join(place, name)), os.path.realpath(path))
    )
