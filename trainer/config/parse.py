"""From the command line to a Config: a YAML file, then dotted overrides."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from trainer.config.schema import Config
from trainer.errors import ConfigError


def config_parser(prog: str, description: str, examples: str) -> ArgumentParser:
    """A parser with --config, every key of Config as --section.key, and --print-config."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples,
        exit_on_error=False,
        allow_abbrev=False,
        print_config="--print-config",
    )
    parser.add_argument("--config", action="config", help="YAML file; keys given behind it win.")
    parser.add_class_arguments(Config)
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Config, Namespace]:
    """The config, and all that was parsed (for arguments that the caller added).

    Raises ConfigError, in one line, for a key or a value that does not fit.
    """
    for path in _config_files(arguments):
        _check_file(path)
    try:
        namespace = parser.parse_args(list(arguments))
        parsed = parser.instantiate(namespace)
    except (ArgumentError, TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(line + _suggestion(line, parser)) from error
    sections = Config.__dataclass_fields__
    return Config(**{name: parsed[name] for name in sections}), namespace


def _config_files(arguments: Sequence[str]) -> list[str]:
    return [value for option, value in pairwise(arguments) if option == "--config"] + [
        argument.removeprefix("--config=")
        for argument in arguments
        if argument.startswith("--config=")
    ]


class _UniqueKeys(yaml.SafeLoader):
    """YAML as it is read everywhere, but a key that stands twice is an error: the last would win
    without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for node_of_key, _ in node.value:
            key = self.construct_object(node_of_key)
            if key in seen:
                line = node_of_key.start_mark.line + 1
                raise yaml.YAMLError(f"in line {line}, {key} stands there a second time")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_file(path: str) -> None:
    """Raise ConfigError unless a config file is sections of keys; their values come later."""
    try:
        values = yaml.load(Path(path).read_text(), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    _check_section(f"--config {path}", values, Config)


def _check_section(where: str, values: object, section: type) -> None:
    if not isinstance(values, dict):
        got = "nothing" if values is None else repr(values)
        raise ConfigError(f"{where}: must be keys with their values, got {got}")
    for name, kind in get_type_hints(section).items():
        if dataclasses.is_dataclass(kind) and name in values:
            _check_section(f"{where}: {name}", values[name], kind)  # type: ignore[arg-type]


def to_yaml(parser: ArgumentParser, namespace: Namespace) -> str:
    """The resolved config as YAML that `--config` reads back."""
    keep = Namespace({name: namespace[name] for name in Config.__dataclass_fields__})
    return parser.dump(keep, skip_validation=True)


def _suggestion(line: str, parser: ArgumentParser) -> str:
    """The key that an unknown one on the command line was probably meant to be."""
    unknown = re.search(r"unrecognized arguments: (--[\w.-]+)", line)
    keys = list(parser.get_defaults().keys())
    known = [f"--{key}" for key in keys]
    close = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
    return f"; did you mean {close[0]}?" if close else ""
