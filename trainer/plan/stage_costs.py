"""What each stage, and each overlapped pair of stages, costs: their passes put together from the
parts of their layers and collectives, and run on two queues as the engine runs them.

The order within a layer is that of the engine and of DeepSeek's trace. Forward: attention,
dispatch, experts, combine. Backward: the gradient of combine travels, experts, the gradient of
dispatch travels, attention; weight gradients are computed while the next collective travels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeAlias

from parallel.schedule.table import Schedule
from parallel.study.costs import CostModel
from parallel.study.pass_times import Leg, pass_times
from trainer.config.schema import Config
from trainer.model.partition import Partition
from trainer.plan.stage_parts import StageParts
from trainer.plan.trace import Times

Part: TypeAlias = Times | None
"""What a stage computes, or an all-to-all: dispatch and combine in turn."""
EXCHANGE: Part = None
Lengths: TypeAlias = tuple[float, float]
"""Of the exchanges of a layer, in the order in which a pass comes to them."""


@dataclass(frozen=True)
class StagePasses:
    """Of one stage. weight_gradient: of a W, which has no collective."""

    forward: tuple[Leg, ...]
    backward: tuple[Leg, ...]
    input_gradient: tuple[Leg, ...]
    weight_gradient: float


def stage_passes(
    config: Config, partition: Partition, parts: StageParts, stage: int
) -> StagePasses:
    """The passes of one stage, in legs."""
    sequence = list(_parts(config, partition, parts, stage))
    there = parts.exchanges.dispatch, parts.exchanges.combine
    back = parts.exchanges.combine_back, parts.exchanges.dispatch_back
    reverse = sequence[::-1]

    def pass_of(parts: Sequence[Part], with_weights: bool, exchanges: Lengths) -> tuple[Leg, ...]:
        computed = [
            None if p is None else (p.input_gradient, p.weight_gradient * with_weights)
            for p in parts
        ]
        return _legs(computed, exchanges)

    return StagePasses(
        forward=_legs([None if p is None else (p.forward, 0.0) for p in sequence], there),
        backward=pass_of(reverse, True, back),
        input_gradient=pass_of(reverse, False, back),
        weight_gradient=sum(p.weight_gradient for p in sequence if p is not None),
    )


def stage_costs(passes: Sequence[StagePasses], schedule: Schedule, overlap: bool) -> CostModel:
    """Costs of items in seconds. overlap: whether pairs run interleaved; if not, one after the
    other."""
    pair = [[0.0] * len(passes) for _ in passes]
    for f, b in _paired(schedule):
        forward, backward = passes[f].forward, passes[b].backward
        if overlap:
            pair[f][b] = pass_times(backward, forward).total
        else:
            pair[f][b] = pass_times(forward).total + pass_times(backward).total
    return CostModel(
        forward=[pass_times(each.forward).total for each in passes],
        input_grad=[pass_times(each.input_gradient).total for each in passes],
        weight_grad=[each.weight_gradient for each in passes],
        pair=pair,
    )


def _paired(schedule: Schedule) -> set[tuple[int, int]]:
    """(stage of the forward, of the backward) of every pair that a rank may run."""
    return {
        (forward, backward)
        for rank in range(schedule.ranks)
        for _, forward in schedule.stages_of(rank)
        for _, backward in schedule.stages_of(rank)
    }


def _parts(config: Config, partition: Partition, parts: StageParts, stage: int) -> Iterator[Part]:
    """What the forward of a stage goes through, in order."""

    def layer(number: int) -> Iterator[Part]:
        yield parts.attention
        if number < config.model.dense_layers:
            yield parts.dense
        else:
            yield from (EXCHANGE, parts.experts, EXCHANGE)

    if stage == 0:
        yield parts.embedding
    for number in partition.stage_layers(stage):
        yield from layer(number)
    if stage == partition.last:
        yield parts.head
        for number in partition.mtp_layers():
            yield parts.mtp_projection
            yield from layer(number)
            yield parts.head


def _legs(sequence: Sequence[tuple[float, float] | None], exchanges: Lengths) -> tuple[Leg, ...]:
    """sequence: what is computed before, and what after the next exchange has started; None: the
    exchange. What waits for an exchange that does not come is computed at the end."""
    legs, lengths = [], cycle(exchanges)
    compute = waiting = 0.0
    for each in sequence:
        if each is None:
            legs.append(Leg(compute, next(lengths), waiting))
            compute = waiting = 0.0
        else:
            compute, waiting = compute + each[0], waiting + each[1]
    return (*legs, Leg(compute + waiting))
