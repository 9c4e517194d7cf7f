"""The schedule table: who computes what, in which order.

A schedule is data. Generators write this table; the check, the lowering, the simulation, the
picture and the executor all read the same one. Nothing here needs torch or a process.

Words: a *stage* is a run of consecutive layers, numbered by depth in the model; a *flow* is a
direction through the ranks (DualPipe has two, every other schedule one); micro-batches count from
0 within a flow; a *program* is one rank's list of items, run in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from parallel.errors import TandemError

Kind: TypeAlias = Literal["F", "B", "I", "W"]


class ScheduleError(TandemError):
    """A schedule that cannot be built for these numbers, or a table that breaks a rule."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Action:
    """One computation of one stage for one micro-batch.

    Kinds, in the letters of the zero-bubble papers (arXiv 2401.10241): F forward, B full backward,
    I the part of the backward that gives the input gradient, W the weight gradients that I left.
    """

    kind: Kind
    flow: int
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}(flow {self.flow}, stage {self.stage}, micro-batch {self.micro_batch})"


@dataclass(frozen=True, slots=True)
class Overlap:
    """A forward and a full backward that one rank runs together, to hide each one's collectives."""

    forward: Action
    backward: Action

    def __str__(self) -> str:
        return f"{self.forward} & {self.backward}"


Item: TypeAlias = Action | Overlap
Program: TypeAlias = tuple[Item, ...]
Placement: TypeAlias = Mapping[tuple[int, int], int]


def actions(item: Item) -> tuple[Action, ...]:
    """The actions of an item: one, or the forward and the backward of an overlapped pair."""
    return (item.forward, item.backward) if isinstance(item, Overlap) else (item,)


def at(rank: int, position: int, what: Item | str) -> str:
    """Where something is in a table, for the lines that name it."""
    return f"rank {rank}, position {position}: {what}"


@dataclass(frozen=True)
class Schedule:
    """The table of one training step.

    ranks: pipeline ranks. micro_batches: in all flows together. placement: (flow, stage) -> rank.
    programs: one per rank. training: False for a table of forwards only, as evaluation runs it.
    """

    name: str
    ranks: int
    micro_batches: int
    placement: Placement
    programs: tuple[Program, ...]
    training: bool = True

    @cached_property
    def flows(self) -> int:
        return 1 + max(flow for flow, _ in self.placement)

    @cached_property
    def stages(self) -> int:
        """Stages of the model, counted once however many flows pass through them."""
        return 1 + max(stage for _, stage in self.placement)

    @property
    def micro_batches_per_flow(self) -> int:
        return self.micro_batches // self.flows

    def stages_of(self, rank: int) -> list[tuple[int, int]]:
        """The (flow, stage) pairs that `rank` holds, in order."""
        return self._places[rank]

    @cached_property
    def _places(self) -> list[list[tuple[int, int]]]:
        places: list[list[tuple[int, int]]] = [[] for _ in range(self.ranks)]
        for place, rank in sorted(self.placement.items()):
            places[rank].append(place)
        return places

    def items(self) -> Iterator[tuple[int, int, Item]]:
        """Every (rank, position, item)."""
        for rank, program in enumerate(self.programs):
            for position, item in enumerate(program):
                yield rank, position, item

    @property
    def stage_share(self) -> float:
        """One stage as a part of a full stage, which is one `ranks`-th of the model."""
        return self.ranks / self.stages

    def rows(self) -> dict[str, list[list[object]]]:
        """The table as plain lists, for a JSON file.

        {"rank0": [["F", flow, stage, micro_batch], ...]}; an overlapped pair is
        ["FB", [flow, stage, micro_batch], [flow, stage, micro_batch]], the forward first.
        """
        return {f"rank{r}": [_row(item) for item in p] for r, p in enumerate(self.programs)}


def _row(item: Item) -> list[object]:
    if isinstance(item, Overlap):
        return ["FB", *([a.flow, a.stage, a.micro_batch] for a in actions(item))]
    return [item.kind, item.flow, item.stage, item.micro_batch]
