"""Passes and how to drive them.

A pass is one stage's forward or backward for one micro-batch, written as a generator. It computes
plainly and yields just after it has started a collective; whoever drives it decides what runs
meanwhile. `run` drives one alone. `interleave` alternates two. That is the whole overlap engine:
each pass computes while the other's collective is in flight, on one host thread.
"""

from __future__ import annotations

from collections.abc import Generator
from types import GeneratorType
from typing import Any, TypeAlias, TypeVar

A = TypeVar("A")
B = TypeVar("B")

Pass: TypeAlias = Generator[None, None, A]


def run(lone: Pass[A]) -> A:
    """Drive one pass to its end; every collective is waited for as soon as it has been started."""
    while True:
        try:
            next(lone)
        except StopIteration as end:
            return end.value


def interleave(first: Pass[A], second: Pass[B]) -> tuple[A, B]:
    """Alternate two passes, `first` first, until both have ended; returns what each returned.

    An exception in either closes the other and leaves with its own traceback.
    """
    waiting: list[Pass] = [first, second]
    results: dict[int, object] = {}
    try:
        while waiting:
            current = waiting.pop(0)
            try:
                next(current)
                waiting.append(current)
            except StopIteration as end:
                results[id(current)] = end.value
    except BaseException:
        for other in (first, second):
            other.close()
        raise
    return results[id(first)], results[id(second)]  # type: ignore[return-value]


def require_no_pass(name: str, values: tuple[Any, ...]) -> None:
    """Raise TypeError for a pass among tensors, which somebody has forgotten to run."""
    for value in values:
        if isinstance(value, GeneratorType):
            raise TypeError(
                f"{name}: the pass {value.gi_code.co_qualname} is never run: "
                "write `yield from` in front of the call that makes it"
            )
