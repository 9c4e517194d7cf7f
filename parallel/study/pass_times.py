"""How long passes take, alone or as an overlapped pair, from their parts: what `run` and
`interleave` in parallel/tape/passes.py do with them, on a device with two queues.

Computation runs on one queue and collectives on another, each in the order in which it was
launched; a pass that waits for its collective holds the computation that is launched after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Leg:
    """A part of a pass, up to and with its next collective. compute: before the collective starts.
    exchange: of the collective; 0 where there is none. meanwhile: what this pass computes while it
    is in flight, before the other pass has its turn."""

    compute: float
    exchange: float = 0.0
    meanwhile: float = 0.0


@dataclass(frozen=True)
class PassTimes:
    """total: until both queues are empty. exposed: time in which only collectives run."""

    total: float
    exposed: float


def pass_times(*passes: Sequence[Leg]) -> PassTimes:
    """Of one pass alone, or of several that take turns, the first first."""
    clock = network = exposed = 0.0
    arrived = [0.0] * len(passes)
    turns = [(number, iter(legs)) for number, legs in enumerate(passes)]
    while turns:
        number, legs = turns.pop(0)
        leg = next(legs, None)
        exposed += max(0.0, arrived[number] - clock)
        clock = max(clock, arrived[number])
        if leg is None:
            continue
        clock += leg.compute
        if leg.exchange:
            network = arrived[number] = max(clock, network) + leg.exchange
        clock += leg.meanwhile
        turns.append((number, legs))
    return PassTimes(clock, exposed)
