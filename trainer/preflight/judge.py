"""Which nodes are unlike the others: a line for each, which names it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trainer.plan.datasheets import Machine
from trainer.preflight.reading import Reading


@dataclass(frozen=True)
class Limits:
    """slow: the part of the median below which a rate is too low. skew: seconds by which a clock
    may be off the median. free: bytes that run.dir must have. stated: what the machines should do,
    by the names of RATES; none for a rate that nobody has stated. least: the part of it below which
    the median is too low."""

    slow: float
    skew: float
    free: int
    least: float
    stated: Mapping[str, float]


@dataclass(frozen=True)
class Problem:
    """node: the number of the one that is unlike the others; None where it is all of them."""

    node: int | None
    line: str


RATES: Mapping[str, tuple[Callable[[Reading], float | None], str]] = {
    "matrix product": (lambda reading: reading.product, "FLOP/s"),
    "all-to-all in the node": (lambda reading: reading.exchange, "B/s"),
    "link to other nodes": (lambda reading: reading.link, "B/s"),
}
"""(the rate of a rank, its unit)."""


def stated(machine: Machine) -> dict[str, float]:
    """What a machine's datasheet, or its config, says of each of RATES."""
    return dict(zip(RATES, (machine.bf16, machine.nvlink, machine.network), strict=True))


def problems(readings: Sequence[Reading], limits: Limits) -> list[Problem]:
    """By node. readings: of all ranks."""
    found = [
        *_unlike("has", readings, lambda reading: reading.versions),
        *_unlike("has in its environment", readings, lambda reading: reading.environment),
        *_clocks(readings, limits.skew),
        *_disks(readings, limits.free),
        *_slow(readings, limits.slow),
    ]
    by_node = sorted(dict.fromkeys(found), key=lambda problem: problem.node or 0)
    return [*_all_slow(readings, limits), *by_node]


def scaled(rate: float, unit: str) -> str:
    """As in 612 TFLOP/s: three digits and a prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if rate >= size:
            return f"{rate / size:.3g} {prefix}{unit}"
    return f"{rate:.3g} {unit}"


def median(values: Sequence[float | None]) -> float | None:
    """None where nothing was measured."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _unlike(
    has: str, readings: Sequence[Reading], of: Callable[[Reading], Mapping[str, str]]
) -> list[Problem]:
    """Those that differ from what most have."""
    found = []
    for name in sorted({name for reading in readings for name in of(reading)}):
        counts = Counter(of(reading).get(name, "nothing") for reading in readings)
        usual = counts.most_common(1)[0][0]
        for reading in readings:
            here = of(reading).get(name, "nothing")
            if here != usual:
                line = f"{reading.where} {has} {name} {here}; most have {usual}"
                found.append(Problem(reading.node, line))
    return found


def _clocks(readings: Sequence[Reading], skew: float) -> list[Problem]:
    usual = statistics.median(reading.clock for reading in readings)
    return [
        Problem(
            reading.node,
            f"the clock of {reading.where} is {abs(reading.clock - usual):.1f} s "
            f"{'ahead of' if reading.clock > usual else 'behind'} the others: synchronise it",
        )
        for reading in readings
        if abs(reading.clock - usual) > skew
    ]


def _disks(readings: Sequence[Reading], least: int) -> list[Problem]:
    found = []
    for reading in readings:
        if not reading.shared:
            what = "does not see at run.dir what rank 0 writes there: put it on a shared disk"
            found.append(Problem(reading.node, f"{reading.where} {what}"))
        if reading.free < least:
            room = f"{reading.free / 2**30:.1f} GiB of room at run.dir, fewer than"
            found.append(Problem(reading.node, f"{reading.where} has {room} {least / 2**30:.1f}"))
    return found


def _slow(readings: Sequence[Reading], slow: float) -> list[Problem]:
    found = []
    for what, (of, unit) in RATES.items():
        usual = median([of(reading) for reading in readings])
        for reading in readings:
            rate = of(reading)
            if rate is not None and usual is not None and rate < slow * usual:
                line = (
                    f"rank {reading.rank} on {reading.where} is slow: {what} "
                    f"{scaled(rate, unit)}, {rate / usual:.0%} of the median {scaled(usual, unit)}"
                )
                found.append(Problem(reading.node, line))
    return found


def _all_slow(readings: Sequence[Reading], limits: Limits) -> list[Problem]:
    """What is slow everywhere, as links are where NCCL does not find the network's cards."""
    found = []
    for what, (of, unit) in RATES.items():
        usual, stated = median([of(reading) for reading in readings]), limits.stated.get(what)
        if usual is not None and stated is not None and usual < limits.least * stated:
            line = (
                f"all nodes are slow: {what} {scaled(usual, unit)} in the median, "
                f"{usual / stated:.0%} of the {scaled(stated, unit)} that cluster.gpu stands for: "
                "correct that section of the config, or see with NCCL_DEBUG=INFO what is used"
            )
            found.append(Problem(None, line))
    return found
