"""A check for silent errors: the copies of a parameter, of its router bias and of its optimizer's
state are the same bits on all ranks that hold them, or some rank has computed something else."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.distributed as dist

from parallel.ranks.mesh import RankSet
from parallel.ranks.together import gather
from parallel.reduce.checksum import Difference, checksum, differences
from trainer.errors import CopiesDifferError
from trainer.model.names import BIAS, released_name, released_names
from trainer.model.part import ModelPart
from trainer.optim.optimizer import Optimizer

_SHOWN = 3


def check_copies(
    part: ModelPart,
    optimizer: Optimizer,
    copies_of: Mapping[str, RankSet],
    groups: Mapping[RankSet, dist.ProcessGroup],
) -> None:
    """Raise CopiesDifferError on every rank if any copies differ. copies_of, groups: by parameter
    of `part`, the ranks that hold it, and the group of these. Collective over the world."""
    checksums: dict[RankSet, dict[str, int]] = {ranks: {} for ranks in copies_of.values()}
    holder: dict[str, RankSet] = {}
    for name, parameter in part.named_parameters():
        ranks = copies_of[name]
        checksums[ranks][released_name(name)] = checksum(parameter.data)
        for released, _ in released_names(part, name, parameter.data):
            holder[released] = ranks
    for name, buffer in part.named_buffers():
        if name.endswith(BIAS):
            ranks = copies_of[f"{name.removesuffix(BIAS)}weight"]
            checksums[ranks][released_name(name)] = checksum(buffer)
    for fragment in optimizer.state():
        what = f"{fragment.kind} of {fragment.name}"
        if len(fragment.values) < math.prod(fragment.shape):
            what += f" from element {fragment.start}"
        checksums[holder[fragment.name]][what] = checksum(fragment.values)
    every = {found for ranks in gather(differences(checksums, groups)) for found in ranks}
    if every:
        raise CopiesDifferError(_said(sorted(every, key=lambda found: (found.ranks, found.what))))


def _said(found: list[Difference]) -> str:
    by_ranks: dict[RankSet, list[str]] = {}
    for one in found:
        by_ranks.setdefault(one.ranks, []).append(one.what)
    lines = []
    for ranks, what in by_ranks.items():
        names = ", ".join(map(str, ranks))
        who = (
            f"rank {names} differs from the others" if len(ranks) == 1 else f"ranks {names} differ"
        )
        more = f" and {len(what) - _SHOWN} more" if len(what) > _SHOWN else ""
        lines.append(f"{who} in {', '.join(what[:_SHOWN])}{more}")
    return "; ".join(lines)
