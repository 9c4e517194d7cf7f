"""A config file: YAML, sections of keys, over the keys of the file that it extends.

Values are read by the types of their keys, so nothing that YAML itself would make of a document
(objects from tags, the expansion of aliases) is ever built.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from parallel.files.plain_yaml import PlainLoader
from parallel.files.regular import read_text
from parallel.files.shown import printable
from trainer.config.keys import MOVED, did_you_mean, keys
from trainer.config.limits import LINE
from trainer.config.schema import Config
from trainer.config.values import NotAValue, read_node, shown_node
from trainer.errors import ConfigError

EXTENDS = "extends"
_MOST_BYTES = 100_000
_DEEPEST = 20
_KEYS = {key.name: key for key in keys(Config)}


def read_config_file(path: str) -> dict[str, Any]:
    """Dotted key -> value, of all keys in the file and in those that it extends.

    Raises ConfigError, in one line with the file and where possible the line in it.
    """
    return _read(Path(path), ())


def with_extended(path: str) -> list[str]:
    """A config file that can be read, and the files that it extends."""
    files, file = [path], Path(path)
    while (extends := _pairs(_compose(path, _text(file, ())), path, path).get(EXTENDS)) is not None:
        file = file.parent / extends.value
        files.append(str(file))
    return files


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    _refuse_cycle(path, extended_by)
    file = printable(path)
    nodes = _pairs(_compose(file, _text(path, extended_by)), file, file)
    extended = nodes.pop(EXTENDS, None)
    found: dict[str, Any] = {}
    if extended is not None:
        if not isinstance(extended, yaml.ScalarNode) or extended.value not in LINE:
            raise ConfigError(f"{_at(extended, file)}: {EXTENDS} must be the name of one file")
        found = _read(path.parent / extended.value, (*extended_by, path))
    return found | dict(_section(nodes, "", Config, file))


def _section(
    nodes: dict[str, yaml.Node], prefix: str, section: type, file: str
) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a section's keys and of those of the sections in it."""
    hints = get_type_hints(section)
    for last, node in nodes.items():
        name, where = prefix + last, _at(node, file)
        if name in _KEYS:
            try:
                yield name, read_node(_KEYS[name], node)
            except NotAValue as error:
                raise ConfigError(f"{where}: {name} {error}") from None
        elif is_dataclass(hints.get(last)):
            inner = _pairs(node, file, f"{where}: {name}")
            yield from _section(inner, f"{name}.", hints[last], file)
        elif name in MOVED:
            raise ConfigError(f"{where}: {name} is now called {MOVED[name]}: set that instead")
        else:
            known = [EXTENDS, *_KEYS, *(f"{prefix}{hint}" for hint in hints)]
            raise ConfigError(f"{where}: there is no key {name!r}{did_you_mean(name, known)}")


def _pairs(node: yaml.Node | None, file: str, where: str) -> dict[str, yaml.Node]:
    """Keys and values of a mapping, whose keys must be words, each used once: of two the last would
    silently win."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where}: must be keys with their values, got {shown_node(node)}")
    pairs: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{_at(key, file)}: a key must be a word")
        if key.value in pairs:
            raise ConfigError(f"{_at(key, file)}: {key.value!r} appears a second time")
        pairs[key.value] = value
    return pairs


def _at(node: yaml.Node, file: str) -> str:
    return f"{file}, line {node.start_mark.line + 1}"


def _refuse_cycle(path: Path, extended_by: tuple[Path, ...]) -> None:
    resolved = [os.path.realpath(other) for other in extended_by]
    if os.path.realpath(path) in resolved:
        chain = " -> ".join(printable(other) for other in (*extended_by, path))
        raise ConfigError(f"{printable(path)} extends itself: {chain}")
    if len(extended_by) >= _DEEPEST:
        raise ConfigError(f"{printable(path)}: no more than {_DEEPEST} files may extend each other")


def _text(path: Path, extended_by: tuple[Path, ...]) -> str:
    name = f"config file {printable(path)}"
    if extended_by:
        name += f", which {printable(extended_by[-1])} extends"
    return read_text(path, _MOST_BYTES, ConfigError, name)


def _compose(file: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{file}{line}: is not YAML of the kind that configs use: {error.problem}"
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file}: is not YAML of the kind that configs use: {reason}") from None
