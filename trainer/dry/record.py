"""What a dry run has seen of one rank's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from parallel.ranks.mesh import RankSet
from parallel.schedule.table import Item

MESSAGES = ("send", "receive")


class Where(NamedTuple):
    """Where in a step something happened.

    item: number of the item of the table, from 1; 0 outside of the table. label: of the pass, F, B,
    I or W; or what the step does, "update of the weights" say. layer: of the model, "" if it is no
    layer's.
    """

    item: int = 0
    label: str = ""
    layer: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.layer, self.label))) or "start"


class Call(NamedTuple):
    """A collective that was started, or a message that was sent or whose receive was posted.

    kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "broadcast", "barrier", "send"
    or "receive". ranks: of the group, in its order; of a message (source, destination). elements:
    of the tensor that is reduced, sent or received; of an all-to-all, those of one row. sent,
    received: rows of an all-to-all, by rank of the group.
    """

    kind: str
    ranks: RankSet
    dtype: str
    elements: int
    where: Where
    bytes: int = 0
    sent: tuple[int, ...] = ()
    received: tuple[int, ...] = ()


class HostWait(NamedTuple):
    """A place where the host waits for the device. what: "item", "nonzero", "copy to the host"; a
    whole list is one. line: file and number of the source."""

    what: str
    where: Where
    line: str


@dataclass
class Record:
    """One rank's step.

    micro_batches: of each data rank. items: that were run. calls: in order. waits: how often, by
    place. start: bytes before the step, by category; peak: when most lived; peaks: the most of
    each, at times of their own. operations: of torch. launches: of kernels, one for each operation
    on the device that is no view. seconds: that the dry run took.
    """

    rank: int
    world: int
    micro_batches: int
    items: list[Item] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    waits: dict[HostWait, int] = field(default_factory=dict)
    start: Mapping[str, int] = field(default_factory=dict)
    peak: Mapping[str, int] = field(default_factory=dict)
    peak_where: object = ""
    peaks: Mapping[str, int] = field(default_factory=dict)
    operations: int = 0
    launches: int = 0
    seconds: float = 0.0
