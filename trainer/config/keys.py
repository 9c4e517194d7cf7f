"""The keys of a config, read off its dataclasses: this is all that parse.py and validate.py know of
them, so that a new field needs no second entry anywhere."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from trainer.config.limits import Limit

# Keys that had another name. The old one is refused by a line that gives the new one.
MOVED = {"run.dtype": "precision.parameters"}


@dataclass(frozen=True)
class Key:
    """name: dotted, as in run.steps; kind: its type, without None; optional: whether null is a
    value; limit: what else a value, or each number of a list, must satisfy."""

    name: str
    kind: Any
    optional: bool
    limit: Limit | None
    default: Any
    doc: str


def keys(section: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a section and of the sections in it; names start with `prefix`."""
    hints = get_type_hints(section, include_extras=True)
    docs = _docs(section)
    for field in dataclasses.fields(section):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, f"{name}.")  # type: ignore[arg-type]
            continue
        limit = None
        if get_origin(hint) is Annotated:
            hint, limit = get_args(hint)
        kinds = [hint]
        if get_origin(hint) in (Union, types.UnionType):
            kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
        yield Key(name, kinds[0], kinds != [hint], limit, field.default, docs.get(field.name, ""))


def values(section: Any, prefix: str = "") -> Iterator[tuple[Key, Any]]:
    """Every key of a section with its value there."""
    for key in keys(type(section), prefix):
        yield key, functools.reduce(getattr, key.name.removeprefix(prefix).split("."), section)


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """The end of an error: what a name that does not exist was probably meant to be, after
    `before`; or ''."""
    known = list(known)
    last = name.split(".")[-1]
    close = [other for other in known if other.split(".")[-1] == last]
    close = difflib.get_close_matches(name, close or known, 1, 0.0 if close else 0.6)
    return f"; did you mean {before}{close[0]}?" if close else ""


@functools.cache
def _docs(section: type) -> dict[str, str]:
    """The text below each field, which Python does not keep."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(ast.literal_eval(below.value)).split())
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
    }
