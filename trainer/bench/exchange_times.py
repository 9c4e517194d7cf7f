"""Where the time of a step's collectives went, from what recorders saw.

Definitions, all in seconds of one rank; which one a figure uses decides what it means:

- in flight: from this rank's start of a collective until it has completed here. Contains the wait
  for peers that start later, and the time in a queue after other collectives.
- transfer: the part of it after the last rank of the group has started: what the link and the
  backend took. Needs one clock, so it is known only where all ranks are on one machine.
- waited: while this rank stood still for the result. This is what a step loses.
- waited for the transfer: the part of that after the last rank has started; the rest was waited
  for a late peer, which no overlap of communication can hide.

Two collectives in flight at once count twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from parallel.ranks.mesh import Mesh
from parallel.ranks.process import Process
from parallel.ranks.together import gather
from parallel.tape.recorder import Event, is_paired

Mode = Literal["on", "off"]
Where = Literal["pairs", "lone"]

ALL_TO_ALLS = ("dispatch", "combine", "counts")
MESSAGES = ("activation", "gradient")
WORK = frozenset({"compute", "weights", "recompute"})


@dataclass(frozen=True)
class Window:
    """One measured step on one rank: from `start` to `end` on the host clock, in seconds."""

    mode: Mode
    start: float
    end: float


@dataclass(frozen=True)
class Exchange:
    """One all-to-all on one rank, on the host clock: in flight, and waited for."""

    label: str
    kind: str
    start: float
    end: float
    wait_start: float
    wait_end: float


@dataclass(frozen=True)
class Times:
    """Exchanges of one kind in a step: how many, and their seconds as defined above."""

    number: float = 0.0
    in_flight: float = 0.0
    waited: float = 0.0
    transfer: float = 0.0
    waited_transfer: float = 0.0

    @property
    def hidden(self) -> float | None:
        """1 - waited / in flight."""
        return hidden_share(self.waited, self.in_flight)

    @property
    def hidden_transfer(self) -> float | None:
        """1 - waited for the transfer / transfer."""
        return hidden_share(self.waited_transfer, self.transfer)


@dataclass(frozen=True)
class StepTimes:
    """Where the mean step of one mode went, in seconds.

    all_to_alls: by where they ran and their kind. messages: waited for messages of the pipeline, by
    kind. computing: the regions of the tape and weight gradients. elsewhere: neither computing nor
    waiting in the pipeline: reduction of the gradients, optimizer, Python around the passes.
    """

    all_to_alls: dict[Where, dict[str, Times]]
    messages: dict[str, float]
    computing: float
    elsewhere: float

    def total(self, *where: Where) -> Times:
        """All kinds together, in these places."""
        return add(t for w in where for t in self.all_to_alls[w].values())


def hidden_share(waited: float, without: float) -> float | None:
    """1 - waited / without, in [0, 1]; None where there was nothing to hide."""
    return min(1.0, max(0.0, 1 - waited / without)) if without > 0 else None


def add(times: Iterable[Times], factor: float = 1.0) -> Times:
    """The sum, times `factor`."""
    return Times(*(factor * sum(column) for column in zip(*(astuple(t) for t in times))))


def exchanges(events: Iterable[Event]) -> list[Exchange]:
    """The all-to-alls of one rank, in an order that is the same on all ranks of a group.

    For one label and kind the n-th flight and the n-th wait belong together: a pass waits for its
    collectives in the order in which it started them.
    """
    flights: dict[tuple[str, str], list[Event]] = defaultdict(list)
    waits: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        if event.name in ALL_TO_ALLS and event.what in ("flight", "wait"):
            (flights if event.what == "flight" else waits)[event.label, event.name].append(event)
    found = []
    for label, kind in sorted(flights):
        # A flight is noted when it ends, and two can end in another order than they started.
        begun = sorted(flights[label, kind], key=lambda event: event.start)
        for flight, wait in zip(begun, waits[label, kind], strict=True):
            found.append(Exchange(label, kind, flight.start, flight.end, wait.start, wait.end))
    return found


def latest_starts(process: Process, mesh: Mesh, events: Iterable[Event]) -> list[float]:
    """For each of `exchanges(events)`, when the last rank of its expert group started it.

    Collective. The host clock is one for all processes of a machine. Across machines it is not,
    and the answer is each rank's own start, which makes transfer the same as in flight. Raises
    ValueError where the ranks have not recorded the same exchanges.
    """
    own_starts, problem = [], None
    try:
        own_starts = [exchange.start for exchange in exchanges(events)]
    except ValueError as error:  # the other ranks must not wait for this one
        problem = error
    everyone = gather(own_starts)
    if problem is not None:
        raise problem
    if process.local_world < process.world:
        return own_starts
    group = mesh.expert_group(process.rank)
    return [max(starts) for starts in zip(*(everyone[rank] for rank in group), strict=True)]


def account(
    events: Sequence[Event], latest: Sequence[float], windows: Sequence[Window], mode: Mode
) -> StepTimes:
    """The mean step of `mode` on one rank; events outside its windows are left out.

    latest: for each of `exchanges(events)`, when the last rank of its group started it.
    """
    mine = [w for w in windows if w.mode == mode]
    if not mine:
        raise ValueError(f"no step was measured with overlap {mode}")
    step = 1 / len(mine)
    sorts: dict[Where, dict[str, list[Times]]] = {
        "pairs": {kind: [] for kind in ALL_TO_ALLS},
        "lone": {kind: [] for kind in ALL_TO_ALLS},
    }
    for exchange, last in zip(exchanges(events), latest, strict=True):
        if _inside(exchange.start, mine):
            where: Where = "pairs" if is_paired(exchange.label) else "lone"
            sorts[where][exchange.kind].append(_times(exchange, last))
    times = {w: {k: add(all_, step) for k, all_ in kinds.items()} for w, kinds in sorts.items()}
    inside = [event for event in events if _inside(event.start, mine)]
    messages = {
        kind: step * sum(e.end - e.start for e in inside if e.what == "wait" and e.name == kind)
        for kind in MESSAGES
    }
    computing = step * sum(e.end - e.start for e in inside if e.what in WORK)
    waited = sum(messages.values()) + sum(t.waited for w in times.values() for t in w.values())
    whole = step * sum(w.end - w.start for w in mine)
    return StepTimes(times, messages, computing, whole - computing - waited)


def mean(of: Sequence[StepTimes]) -> StepTimes:
    """The mean over ranks."""
    share = 1 / len(of)
    where: tuple[Where, ...] = ("pairs", "lone")
    return StepTimes(
        {w: {k: add((s.all_to_alls[w][k] for s in of), share) for k in ALL_TO_ALLS} for w in where},
        {kind: share * sum(s.messages[kind] for s in of) for kind in MESSAGES},
        share * sum(s.computing for s in of),
        share * sum(s.elsewhere for s in of),
    )


def _inside(time: float, windows: Sequence[Window]) -> bool:
    return any(w.start <= time < w.end for w in windows)


def _times(exchange: Exchange, last: float) -> Times:
    return Times(
        number=1.0,
        in_flight=exchange.end - exchange.start,
        waited=exchange.wait_end - exchange.wait_start,
        transfer=max(0.0, exchange.end - last),
        waited_transfer=max(0.0, exchange.wait_end - max(exchange.wait_start, last)),
    )
