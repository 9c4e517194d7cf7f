"""Costs of what a schedule does: times, messages and memory, and their YAML file.

    forward: 1.0              # a number, for a full stage, or a list with one for each stage
    input_grad: [1.0, 1.1, 1.1, 2.0]
    pair: [[2.4, 2.5], [2.5, 2.6]]   # by the stage of the forward, then of the backward
    bandwidth: .inf

A key that is left out has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from parallel.files.outputs import write_file
from parallel.files.plain_yaml import plain_yaml
from parallel.files.regular import read_text
from parallel.files.shown import shown
from parallel.schedule.table import Action, Item, Overlap, Schedule, ScheduleError

Cost: TypeAlias = float | Sequence[float]
BY_STAGE = ("forward", "input_grad", "weight_grad", "optimizer", "activation", "pending_fraction")
BY_RANK = ("pair_factor",)
MOST = 1e15  # of a cost
MOST_BYTES = 2**20  # of a file, which has one number for each stage and key


@dataclass(frozen=True)
class CostModel:
    """Costs in any one unit of time, the same for all of them, and any one of memory.

    forward, input_grad, weight_grad: F, I and W; a B costs I + W. A number is the cost of a full
    stage, one P-th of the model for P ranks, so a V's half-size stage costs half of it. A sequence
    has one cost for each stage of the schedule, of that stage as it is.
    pair_factor: the cost of an overlapped pair over the sum of its parts; a sequence is by rank.
    pair: in its place, the cost of each pair as it is: pair[stage of the forward][stage of the
    backward]. Only those of stages that share a rank are used.
    optimizer: at the end of a rank's program, for every stage it holds; as forward.
    optimizer_waits: all ranks start it together, as clipping by the norm of all gradients needs;
    if not, each starts after its own last item.
    hop: the latency of one message from one rank to the next, the same for every stage size: a V's
    message has as many activations as a full stage's. message_bytes, bandwidth: of a channel, in
    bytes per unit of time; messages occupy it one after the other, and their latencies overlap.
    activation: memory of one micro-batch's activations, from F to B or W; as forward.
    pending_fraction: the part of it that is still held from the end of I to the end of W; a number
    is for every stage.
    """

    forward: Cost = 1.0
    input_grad: Cost = 1.0
    weight_grad: Cost = 1.0
    pair_factor: Cost = 1.0
    pair: Sequence[Sequence[float]] | None = None
    optimizer: Cost = 0.0
    optimizer_waits: bool = True
    hop: float = 0.0
    message_bytes: float = 0.0
    bandwidth: float = inf
    activation: Cost = 1.0
    pending_fraction: Cost = 1.0

    @property
    def transmission(self) -> float:
        """How long one message keeps its channel busy."""
        return self.message_bytes / self.bandwidth


NOTHING = CostModel(forward=0.0, input_grad=0.0, weight_grad=0.0)


class Costs:
    """A cost model expanded for one schedule.

    activation, pending: memory by stage, from F to I and from I to W.
    Raises ScheduleError for costs that do not fit its stages and ranks.
    """

    def __init__(self, model: CostModel, schedule: Schedule) -> None:
        stages, share = schedule.stages, schedule.stage_share
        forward = _each("forward", model.forward, stages, "stages", share)
        input_grad = _each("input_grad", model.input_grad, stages, "stages", share)
        weight_grad = _each("weight_grad", model.weight_grad, stages, "stages", share)
        backward = [i + w for i, w in zip(input_grad, weight_grad)]
        self._by_kind = {"F": forward, "B": backward, "I": input_grad, "W": weight_grad}
        self._pair_factor = _each("pair_factor", model.pair_factor, schedule.ranks, "ranks")
        self._pair = _pairs(model, stages)
        optimizer = _each("optimizer", model.optimizer, stages, "stages", share)
        self.optimizer = [
            sum(optimizer[stage] for _, stage in schedule.stages_of(rank))
            for rank in range(schedule.ranks)
        ]
        self.activation = _each("activation", model.activation, stages, "stages", share)
        fraction = _each("pending_fraction", model.pending_fraction, stages, "stages")
        self.pending = [f * a for f, a in zip(fraction, self.activation)]

    def duration(self, rank: int, item: Item) -> float:
        """How long `rank` computes on `item`."""
        if isinstance(item, Overlap):
            if self._pair:
                return self._pair[item.forward.stage][item.backward.stage]
            both = self._alone(item.forward) + self._alone(item.backward)
            return self._pair_factor[rank] * both
        return self._by_kind[item.kind][item.stage]

    def _alone(self, action: Action) -> float:
        return self._by_kind[action.kind][action.stage]


def _each(name: str, cost: Cost, count: int, what: str, share: float = 1.0) -> list[float]:
    if not isinstance(cost, Sequence):
        return [cost * share] * count
    if len(cost) != count:
        raise ScheduleError(f"costs: {name} has {len(cost)} numbers for {count} {what}")
    return list(cost)


def _pairs(model: CostModel, stages: int) -> list[list[float]] | None:
    if model.pair is None:
        return None
    if model.pair_factor != 1.0:
        raise ScheduleError("costs: pair and pair_factor exclude each other; leave one out")
    if len(model.pair) != stages or any(len(row) != stages for row in model.pair):
        raise ScheduleError(f"costs: pair must be {stages} rows of {stages} numbers, by stage")
    return [list(row) for row in model.pair]


def read_costs(path: Path | str) -> CostModel:
    """The cost model of a YAML file.

    Raises ScheduleError, in one line that names the file and the key, for anything but costs.
    """
    where = f"costs: {path}"
    text = read_text(path, MOST_BYTES, ScheduleError, where)
    try:
        values = plain_yaml(text)
    except ValueError as error:
        raise ScheduleError(f"{where} is not YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ScheduleError(f"{where} must be keys and their costs, not {shown(values)}")
    keys = [field.name for field in dataclasses.fields(CostModel)]
    for key, value in values.items():
        if key not in keys:
            raise ScheduleError(f"{where} has a key {shown(key)}; there are {', '.join(keys)}")
        if not _fits(key, value):
            raise ScheduleError(f"{where}: {key} must be {_wanted(key)}, got {shown(value)}")
    costs: dict[str, Any] = {key: _as_tuple(value) for key, value in values.items()}
    return CostModel(**costs)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def write_costs(costs: CostModel, path: Path | str) -> None:
    """Write `costs` as a YAML file that `read_costs` gives back."""
    values = {key: _as_list(value) for key, value in vars(costs).items() if value is not None}
    write_file(path, yaml.safe_dump(values, sort_keys=False, default_flow_style=None))


def _as_list(value: Any) -> Any:
    if not isinstance(value, Sequence):
        return value
    return [_as_list(each) if isinstance(each, Sequence) else float(each) for each in value]


def is_cost(value: object) -> bool:
    """Whether `value` is a number that can be a cost: from 0 up, and sums of it are numbers too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST


def _wanted(key: str) -> str:
    if key == "optimizer_waits":
        return "true or false"
    if key == "pair":
        return f"a list of lists of numbers from 0 to {MOST:g}, one for each two stages"
    number = {
        "bandwidth": f"a number from {1 / MOST:g} up",
        "pending_fraction": "a number from 0 to 1",
    }.get(key, f"a number from 0 to {MOST:g}")
    if key in BY_STAGE + BY_RANK:
        return f"{number}, or a list of one for each {'rank' if key in BY_RANK else 'stage'}"
    return number


def _fits(key: str, value: object) -> bool:
    if key == "optimizer_waits":
        return isinstance(value, bool)
    if key == "pair":
        rows = value if isinstance(value, list) and value else [None]
        return all(isinstance(row, list) and row and all(map(is_cost, row)) for row in rows)
    if isinstance(value, list) and key in BY_STAGE + BY_RANK:
        return bool(value) and all(
            not isinstance(cost, list) and _fits(key, cost) for cost in value
        )
    if key == "bandwidth":
        return value == inf or (is_cost(value) and value >= 1 / MOST)  # type: ignore[operator]
    return is_cost(value) and (key != "pending_fraction" or value <= 1)  # type: ignore[operator]
