"""Checksums of tensors, and which of several copies differ from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.mesh import RankSet

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
_IN_CACHE, _ON_DEVICE = 1 << 16, 1 << 24  # words at a time


@dataclass(frozen=True)
class Difference:
    """Copies of `what` that are not the same bits. ranks: those that differ from most copies; all
    that hold one where there is no majority."""

    what: str
    ranks: RankSet


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """Of all bits: the sum over words i of at most 32 bits of (2 i + 1) x the word, modulo 2^64. No
    change of one word, and no flip of two bits, goes unseen: odd factors have an inverse, and
    2^a (2 i + 1) is equal to no other 2^b (2 j + 1)."""
    words = tensor.contiguous().view(-1).view(_WORDS[tensor.element_size()])
    on_cpu = tensor.device.type == "cpu"
    at_once = min(len(words), _IN_CACHE if on_cpu else _ON_DEVICE)
    factors = torch.arange(1, 2 * at_once, 2, device=tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), max(1, at_once)):
        part = words[start : start + at_once].to(torch.int64)
        own = factors[: len(part)]
        weighted = torch.dot(part, own) if on_cpu else (part * own).sum()
        total += weighted + 2 * start * part.sum()
    return int(total)


def differences(
    checksums: Mapping[RankSet, Mapping[str, int]], groups: Mapping[RankSet, dist.ProcessGroup]
) -> list[Difference]:
    """Compare with the other ranks of each set; on all ranks of a set the same.

    checksums: by a set of ranks that hold the same, by the name of what they hold. Sharded state is
    there on one of them only: what has no other copy is not compared. Collective over each set.
    """
    found = []
    for ranks in sorted(checksums):  # in one order on all ranks, so that no two wait in a circle
        if ranks not in groups:
            continue
        theirs: list[Mapping[str, int]] = [{} for _ in ranks]
        dist.all_gather_object(theirs, dict(checksums[ranks]), group=groups[ranks])
        for what in sorted(set().union(*theirs)):
            held = {rank: sums[what] for rank, sums in zip(ranks, theirs) if what in sums}
            ((usual, count), *others) = Counter(held.values()).most_common()
            if others:
                most = 2 * count > len(held)
                odd = [rank for rank, value in held.items() if value != usual or not most]
                found.append(Difference(what, tuple(odd)))
    return found
