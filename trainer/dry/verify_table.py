"""What a verification has found, as JSON and in lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.dry.sequence import AFTER, Entry
from trainer.dry.verify import Verified

_SHOWN = 10


def verified_json(verified: Verified) -> dict[str, Any]:
    return {
        "sound": verified.sound,
        "ranks": verified.world,
        "ranks_run": list(verified.run),
        "groups": verified.groups,
        "channels": verified.channels,
        "calls": verified.calls,
        "mismatches": [
            {"rank": one.rank, "group": list(one.group), "call": one.number, "what": one.what}
            for one in verified.mismatches
        ],
        "stuck": dict(_stuck(verified.stuck)),
        "at_risk": dict(_stuck(verified.at_risk)),
    }


def verified_lines(verified: Verified) -> Iterator[str]:
    """For a person."""
    yield (
        f"{verified.world:,} ranks, of which {len(verified.run)} were run: {verified.calls:,} "
        f"calls per step on {verified.groups:,} groups and {verified.channels:,} channels"
    )
    for one in verified.mismatches[:_SHOWN]:
        yield f"do not match: {one}"
    if len(verified.mismatches) > _SHOWN:
        yield f"and {len(verified.mismatches) - _SHOWN} more groups that do not match"
    if not verified.mismatches:
        yield "on each of them all ranks call the same, in the same order, of sizes that agree"
        yield from _end(verified)


def _end(verified: Verified) -> Iterator[str]:
    for rank, where in list(_stuck(verified.stuck))[:_SHOWN]:
        yield f"never ends: rank {rank} waits {where}"
    if verified.stuck:
        return
    yield "no deadlock, even where a posted receive blocks what comes behind it"
    if not verified.at_risk:
        yield "nor where a device synchronises by itself while gradients are being summed"
        return
    rank, where = next(_stuck(verified.at_risk))
    yield (
        "but one is possible where a device synchronises by itself while gradients are being "
        f"summed: rank {rank} would wait {where}"
    )


def _stuck(ranks: Mapping[int, Entry]) -> Iterator[tuple[int, str]]:
    for rank, entry in sorted(ranks.items()):
        at = "after the items" if entry.position == AFTER else f"in item {entry.position + 1}"
        yield rank, f"{at} for the {entry}"
