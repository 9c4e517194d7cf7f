"""From the command line to a Config: the defaults, a config file over them, then the options."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from trainer.config.config_file import read_config_file
from trainer.config.keys import MOVED, Key, did_you_mean, keys, values
from trainer.config.schema import Config
from trainer.config.values import NotAValue, read_text, shown, words_of
from trainer.errors import ConfigError

_YAML = (".yaml", ".yml")


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves examples and descriptions on the lines that they were written on."""


def config_parser(prog: str, description: str, examples: str) -> ArgumentParser:
    """A parser with --config, every key of Config as --section.key, and --print-config."""
    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML file. With `extends: OTHER` it changes keys of another file, whose name is "
        "relative to its own. Options win over both.",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="Print the whole config as YAML, and exit."
    )
    for name, section in get_type_hints(Config).items():
        group = parser.add_argument_group(name, section.__doc__)
        for key in keys(section, f"{name}."):
            group.add_argument(
                f"--{key.name}",
                type=_Reader(key),
                default=key.default,
                metavar=key.name.split(".")[-1].upper(),
                help=key.doc.replace("%", "%%"),
                # `--run.overwrite` alone is true.
                nargs="?" if key.kind is bool else None,
                const=True if key.kind is bool else None,
            )
    return parser


class _Reader:
    """Reads the text of an option by its key's type; --help shows what it accepts."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def __call__(self, text: Any) -> Any:
        if not isinstance(text, str):
            return text  # the parser checks again what has been read
        try:
            return read_text(self._key, text)
        except NotAValue as error:
            raise ArgumentTypeError(str(error)) from None

    def __repr__(self) -> str:
        return words_of(self._key)


def parse(
    parser: ArgumentParser,
    arguments: Sequence[str],
    base: Callable[[Namespace], Config] = lambda given: Config(),
) -> tuple[Config, Namespace]:
    """The config, and all that was parsed (for arguments that the caller added).

    base(given): what file and options change; given has only what was given. Raises ConfigError,
    in one line, for a file, a key or a value that does not fit.
    """
    try:
        given = parser.parse_args(list(arguments), defaults=False)
    except ArgumentError as error:
        raise ConfigError(_explained(error, parser)) from None
    parsed = parser.get_defaults()
    for key, value in values(base(given)):
        parsed[key.name] = value
    files = given.get("config", [])
    if len(files) > 1:
        raise ConfigError(
            f"--config is given {len(files)} times: give one file, which may say `extends: OTHER`"
        )
    for name, value in read_config_file(files[0]).items() if files else ():
        parsed[name] = value
    for name, value in given.items():
        parsed[name] = value
    if parsed["print_config"]:
        print(to_yaml(parser, parsed), end="")
        parser.exit()
    return _section(Config, parsed), parsed


def to_yaml(parser: ArgumentParser, namespace: Namespace) -> str:
    """The resolved config as YAML that `--config` reads back."""
    keep = Namespace({field.name: namespace[field.name] for field in fields(Config)})
    return parser.dump(keep, skip_unset=False, skip_validation=True)


def _section(kind: Any, parsed: Namespace) -> Any:
    hints = get_type_hints(kind)
    return kind(
        **{
            name: _section(hint, parsed[name]) if is_dataclass(hint) else parsed[name]
            for name, hint in hints.items()
        }
    )


def _explained(error: ArgumentError, parser: ArgumentParser) -> str:
    """An error of the parser as one line that says what to write instead."""
    line = " ".join(str(error).split())
    if value := re.fullmatch(r"argument --(\S+): (must be .*)", line):
        return f"{'' if '.' in value[1] else '--'}{value[1]} {value[2]}"
    if missing := re.fullmatch(r"argument (--\S+): expected one argument", line):
        return f"{missing[1]} needs a value"
    unknown = re.fullmatch(r"unrecognized arguments: (-- )?(\S+).*", line)
    if unknown is None:
        return line
    argument = unknown[2]
    if not argument.startswith("--"):
        meant = f"; did you mean --config {argument}?" if Path(argument).suffix in _YAML else ""
        return f"{shown(argument)} is not an option{meant}"
    name = argument.split("=")[0].removeprefix("--")
    if name in MOVED:
        return f"--{name} is now called --{MOVED[name]}: set that instead"
    names = [name for name, _ in parser.get_defaults().items()]
    known = [name if "." in name else name.replace("_", "-") for name in names]
    inside = next((key for key in known if key.startswith(f"{name}.")), None)
    if inside:
        return f"--{name} is a section: set its keys one by one, as in --{inside}"
    return f"there is no option --{name}{did_you_mean(name, known, '--')}"
