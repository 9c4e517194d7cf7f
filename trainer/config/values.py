"""From the text of a value to the value, guided by the type of its key.

YAML guesses a type from the text alone (`off` is false, `1e-3` is text, a run called 123 a number).
Here the key says what the text has to be, in a file and on the command line alike.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, get_args, get_origin

import yaml

from trainer.config.keys import Key
from trainer.config.limits import Text

_NULL = {"", "~", "null", "Null", "NULL"}
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_LISTED = {int: "whole numbers, as in [1, 2]", str: "names, as in [a, b]"}


class NotAValue(ValueError):
    """The text is no value of the key; the message follows the key's name."""


def words_of(key: Key) -> str:
    """What a value of `key` is, as for --help."""
    parts = [] if isinstance(key.limit, Text) else [_words(key.kind)]
    parts += [str(key.limit)] if key.limit else []
    return ", ".join(parts + ["or null"] * key.optional)


def read_text(key: Key, text: str) -> Any:
    """The value that an option gives. Raises NotAValue."""
    if get_origin(key.kind) in (list, tuple) and text.strip():
        try:
            return read_node(key, yaml.compose(text, yaml.SafeLoader))
        except (yaml.YAMLError, RecursionError):
            raise NotAValue(f"must be {_words(key.kind)}, got {shown(text)}") from None
    style = None if text else '"'  # an empty option is an empty text, not null
    return read_node(key, yaml.ScalarNode("", text, style=style))


def read_node(key: Key, node: yaml.Node | None) -> Any:
    """The value that a node of a YAML document gives. Raises NotAValue."""
    if node is None or (
        isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULL
    ):
        if key.optional:
            return None
        raise NotAValue(f"must be {_words(key.kind)}, not blank or null")
    origin, kinds = get_origin(key.kind), get_args(key.kind)
    if origin not in (list, tuple):
        return _scalar(key.kind, node)
    if not isinstance(node, yaml.SequenceNode) or (
        origin is tuple and len(node.value) != len(kinds)
    ):
        raise NotAValue(f"must be {_words(key.kind)}, got {shown_node(node)}")
    return origin(_scalar(kinds[0], item) for item in node.value)


def shown(value: object) -> str:
    """A value in an error: one line, not long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown_node(node: yaml.Node | None) -> str:
    """What a node is, in an error."""
    if isinstance(node, yaml.ScalarNode) and node.value:
        return shown(node.value)
    if isinstance(node, yaml.CollectionNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "keys"
    return "nothing"


def _scalar(kind: Any, node: yaml.Node) -> Any:
    text = node.value if isinstance(node, yaml.ScalarNode) else None
    if text is not None:
        if kind is str:
            return text
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind is int and re.fullmatch(r"[+-]?[0-9][0-9_]{0,30}", text):
            return int(text.replace("_", ""))
        if kind is float and (number := _number(text)) is not None:
            return number
    raise NotAValue(f"must be {_words(kind)}{_hint(kind, text)}, got {shown_node(node)}")


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text) if text.isascii() else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _hint(kind: Any, text: str | None) -> str:
    """How to write 1e3 or 4.0 where a whole number is wanted."""
    number = _number(text) if text is not None and kind is int else None
    if number is None or not number.is_integer() or abs(number) > 1e15:
        return ""
    return f", written as {int(number)}"


def _words(kind: Any) -> str:
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(kinds)}"
    if origin is list:
        return f"a list of {_LISTED[kinds[0]]}"
    if origin is tuple:
        return f"a list of {len(kinds)} {_WORDS[kinds[0]]}s, as in [0.9, 0.95]"
    return f"a {_WORDS[kind]}" if kind in (int, float) else _WORDS[kind]
