"""A config file: YAML, sections of keys, over the keys of the file that it extends.

Values are read by the types of their keys, so nothing that YAML itself would make of a document
(objects of tags, whatever aliases multiply to) is ever built.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

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
    """Dotted key -> value, of all keys that the file and those it extends have.

    Raises ConfigError, in one line with the file and where possible the line in it.
    """
    return _read(Path(path), ())


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    _refuse_cycle(path, extended_by)
    file = _name(path)
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
    """Keys and values of a mapping, whose keys must be words that stand there once: of two the last
    would win without a word."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where}: must be keys with their values, got {shown_node(node)}")
    pairs: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{_at(key, file)}: a key must be a word")
        if key.value in pairs:
            raise ConfigError(f"{_at(key, file)}: {key.value!r} stands there a second time")
        pairs[key.value] = value
    return pairs


def _at(node: yaml.Node, file: str) -> str:
    return f"{file}, line {node.start_mark.line + 1}"


def _name(path: Path) -> str:
    """A path in an error, on one line whatever its characters."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _refuse_cycle(path: Path, extended_by: tuple[Path, ...]) -> None:
    resolved = [os.path.realpath(other) for other in extended_by]
    if os.path.realpath(path) in resolved:
        chain = " -> ".join(_name(other) for other in (*extended_by, path))
        raise ConfigError(f"{_name(path)} extends itself: {chain}")
    if len(extended_by) >= _DEEPEST:
        raise ConfigError(f"{_name(path)}: no more than {_DEEPEST} files may extend each other")


def _text(path: Path, extended_by: tuple[Path, ...]) -> str:
    name = f"config file {_name(path)}"
    if extended_by:
        name += f", which {_name(extended_by[-1])} extends"
    try:
        # Without O_NONBLOCK, opening a FIFO waits for someone to write to it.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise ConfigError(f"{name}: is not a file of text")
            content = f.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{name}: is larger than {_MOST_BYTES:,} bytes, so is no config")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not YAML, since it is not text in UTF-8") from None


class _PlainLoader(yaml.SafeLoader):
    """Makes nodes of a document without tags, nested no deeper than any config is."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="tags are not supported", problem_mark=event.start_mark
            )
        if self.depth >= _DEEPEST:
            problem = f"nested deeper than {_DEEPEST}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(file: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            f"{file}{line}: is not YAML as configs have it: {error.problem}"
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file}: is not YAML as configs have it: {reason}") from None
