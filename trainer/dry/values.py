"""Numbers that a tensor of a dry run has after all: those that do not depend on the data.

A device tensor has no numbers. But what a run reads from the device to learn sizes follows from
the routing by integer arithmetic, so where the routing is assumed, these numbers are computed
beside the sizes, on the host, by the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MOST = 2**22
"""Elements of the largest tensor whose numbers are kept."""


def known(tensor: Tensor) -> Tensor | None:
    """The numbers of a tensor, on the host; None where it has none."""
    if not isinstance(tensor, FakeTensor):
        return tensor if tensor.device.type == "cpu" else None
    return getattr(tensor, "known_values", None)


def set_known(tensor: Tensor, numbers: Tensor | None) -> None:
    if isinstance(tensor, FakeTensor):
        if numbers is None:
            tensor.__dict__.pop("known_values", None)
        else:
            tensor.known_values = numbers  # type: ignore[attr-defined]


def compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of an operation on the numbers of its operands; None where one has none."""
    missing = False

    def host(value: Any) -> Any:
        nonlocal missing
        if isinstance(value, Tensor):
            numbers = known(value)
            missing = missing or numbers is None
            return numbers
        if isinstance(value, (list, tuple)):
            return [host(each) for each in value]
        return value

    operands = [host(arg) for arg in args]
    if missing:
        return None
    options = {name: host(value) for name, value in kwargs.items() if name != "device"}
    return None if missing else func(*operands, **options)


def numbers_of(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
    """Of what an operation has given, as far as they follow from its operands: one tensor or a
    list. Numbers that are not whole have their origin in whole ones, or are not known."""
    first = out[0] if isinstance(out, (list, tuple)) and out else out
    if not isinstance(first, Tensor) or first.numel() > MOST:
        return None
    operands: list[Tensor] = []
    tensors_in(args, operands.append)
    if not operands and first.is_floating_point():
        return None
    return compute(func, args, kwargs)


def tensors_in(values: Any, each: Callable[[Tensor], None]) -> None:
    """Call `each` with every tensor among the arguments or the results of an operation."""
    if isinstance(values, Tensor):
        each(values)
    elif isinstance(values, (list, tuple)):
        for value in values:
            tensors_in(value, each)
