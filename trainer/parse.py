"""From the command line to a Config: a YAML file, then dotted overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from trainer.config import Config
from trainer.validate import ConfigError


def config_parser(prog: str, description: str, examples: str) -> ArgumentParser:
    """A parser with --config, every key of Config as --section.key, and --print-config."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples,
        exit_on_error=False,
        print_config="--print-config",
    )
    parser.add_argument("--config", action="config", help="YAML file; keys given behind it win.")
    parser.add_class_arguments(Config)
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Config, Namespace]:
    """The config, and all that was parsed (for arguments that the caller added).

    Raises ConfigError, in one line, for a key or a value that does not fit.
    """
    try:
        namespace = parser.parse_args(list(arguments))
        parsed = parser.instantiate(namespace)
    except ArgumentError as error:
        line = " ".join(str(error).split())
        raise ConfigError(line + _suggestion(line, parser)) from error
    sections = Config.__dataclass_fields__
    return Config(**{name: parsed[name] for name in sections}), namespace


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
