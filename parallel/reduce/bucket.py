"""Parameters that have the same copies, in two flat buffers: their values and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.ops.accumulate import set_gradient
from parallel.ops.precision import accurate_type
from parallel.ranks.mesh import RankSet

_ALIGNMENT = 64  # elements from one parameter's start to the next: what any kernel may want


@dataclass(frozen=True)
class Bucket:
    """Parameters of one rank with the same copies, stages, type and kind.

    kind: a word of the optimizer's for what it does with them. stages: all that use them, on any
    rank. starts: of each parameter in the
    buffers. values, gradient: flat; each parameter and its gradient is a view of them, and what
    lies between parameters stays zero. ranks: the copies, in order. group: theirs; None for one.
    """

    kind: str
    stages: frozenset[int]
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    starts: tuple[int, ...]
    values: Tensor
    gradient: Tensor
    ranks: RankSet
    group: dist.ProcessGroup | None

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The gradient of each parameter, flat."""
        for name, parameter, start in zip(self.names, self.parameters, self.starts):
            yield name, self.gradient[start : start + parameter.numel()]


def make_buckets(
    parameters: Mapping[str, nn.Parameter],
    copies_of: Mapping[str, RankSet],
    groups: Mapping[RankSet, dist.ProcessGroup],
    kind_of: Callable[[str], str],
    stages_of: Callable[[str], frozenset[int]],
    device: torch.device | None = None,
) -> list[Bucket]:
    """Every parameter in one bucket, in an order that is the same on every rank: about that in
    which their gradients are there, the deepest stage first.

    copies_of: by parameter name; names are the same on every rank that holds a copy. Moves the
    values of the parameters into the flat buffers. Where they are on meta, the buckets have new
    parameters in their place, not set, on `device`.
    """
    members: dict[tuple[int, tuple[int, ...], RankSet, str, str], list[str]] = {}
    for name in sorted(parameters):
        stages, dtype = stages_of(name), str(parameters[name].dtype)
        key = (
            -min(stages, default=0),
            tuple(sorted(stages)),
            copies_of[name],
            kind_of(name),
            dtype,
        )
        members.setdefault(key, []).append(name)
    return [
        _bucket(
            kind,
            frozenset(stages),
            {name: parameters[name] for name in names},
            ranks,
            groups.get(ranks),
            device,
        )
        for (_, stages, ranks, kind, _), names in sorted(members.items())
    ]


def _bucket(
    kind: str,
    stages: frozenset[int],
    members: Mapping[str, nn.Parameter],
    ranks: RankSet,
    group: dist.ProcessGroup | None,
    device: torch.device | None,
) -> Bucket:
    starts, end = [], 0
    for parameter in members.values():
        starts.append(end)
        end += _rounded_up(parameter.numel(), _ALIGNMENT)
    size = _rounded_up(end, _ALIGNMENT * len(ranks))  # so that any copy's share starts aligned
    first = next(iter(members.values()))
    values = torch.zeros(size, dtype=first.dtype, device=device or first.device)
    gradient = torch.zeros_like(values, dtype=accurate_type(values.dtype))
    parameters = []
    for parameter, start in zip(members.values(), starts):
        place = slice(start, start + parameter.numel())
        parameters.append(_moved(parameter, values[place].view(parameter.shape)))
        set_gradient(parameters[-1], gradient[place].view(parameter.shape))
    return Bucket(
        kind, stages, tuple(members), tuple(parameters), tuple(starts), values, gradient, ranks,
        group,
    )  # fmt: skip


def _moved(parameter: nn.Parameter, place: Tensor) -> nn.Parameter:
    """The parameter, with its values in `place`; a new one there for one that has none."""
    if parameter.is_meta:
        return nn.Parameter(place)
    place.copy_(parameter.detach())
    parameter.data = place
    return parameter


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
