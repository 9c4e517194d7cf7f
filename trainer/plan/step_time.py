"""The time of a training step: the schedule's own table, simulated with the costs of its stages,
messages and end, and split as DeepSeek splits it (arXiv 2505.09343, table 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from parallel.schedule.table import Item, Overlap, Schedule
from parallel.study.costs import CostModel, read_costs
from parallel.study.simulate import simulate
from parallel.study.timeline import Timeline
from trainer.build.part import partition_of
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.parameters import RankParameters
from trainer.plan.stage_costs import stage_costs, stage_passes
from trainer.plan.stage_parts import stage_parts
from trainer.plan.step_end import StepEnd, step_end
from trainer.plan.traffic import message_bytes, pipeline_link

SOURCES = ("roofline", "deepseek-h800")
"""Of costs, which are not files."""
MESSAGE_LATENCY = 3.7e-6
"""Seconds, InfiniBand over two switches (arXiv 2505.09343, table 5)."""


@dataclass(frozen=True)
class StepParts:
    """Seconds of a step. forward: F alone. pairs: F and B together. input_gradient_and_backward: I
    and B alone. weight_gradient: W alone. bubble: waiting. optimizer: sums of gradients, update,
    new weights given back. Together the step."""

    forward: float = 0.0
    pairs: float = 0.0
    input_gradient_and_backward: float = 0.0
    weight_gradient: float = 0.0
    bubble: float = 0.0
    optimizer: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """timeline: in seconds, its end included. by_rank, ends: of each pipeline rank."""

    timeline: Timeline
    costs: CostModel
    by_rank: tuple[StepParts, ...]
    ends: tuple[StepEnd, ...]

    @property
    def seconds(self) -> float:
        return self.timeline.makespan

    @property
    def parts(self) -> StepParts:
        """Mean over the ranks."""
        return mean_parts(self.by_rank)


def step_time(
    config: Config,
    schedule: Schedule,
    ranks: Sequence[RankParameters],
    machine: Machine,
    sequence_length: int | None = None,
) -> StepTime:
    """ranks: by pipeline rank. sequence_length: where it is not the config's.

    Raises ConfigError, and ScheduleError for a file of costs that does not fit.
    """
    ends = tuple(step_end(config, rank, machine) for rank in ranks)
    costs = stage_cost_model(config, schedule, machine, sequence_length)
    timeline = simulate(schedule, costs)
    timeline = ended(timeline, [end.total for end in ends])
    return StepTime(timeline, costs, split(timeline), ends)


def stage_cost_model(
    config: Config, schedule: Schedule, machine: Machine, sequence_length: int | None = None
) -> CostModel:
    """What items and messages of the table cost, in seconds, from the source that the config
    names."""
    if config.plan.costs not in SOURCES:
        return read_costs(config.plan.costs)
    mesh, partition = mesh_of(config), partition_of(config, schedule)
    parts = stage_parts(config, mesh, machine, sequence_length)
    passes = [stage_passes(config, partition, parts, stage) for stage in range(schedule.stages)]
    return replace(
        stage_costs(passes, schedule, config.pipeline.overlap),
        hop=MESSAGE_LATENCY,
        message_bytes=message_bytes(config, mesh),
        bandwidth=pipeline_link(mesh, machine),
    )


def ended(timeline: Timeline, ends: Sequence[float]) -> Timeline:
    """With the end of the step, which takes each rank so many seconds."""
    last = timeline.makespan  # all wait for the norm of all gradients
    return replace(timeline, optimizer=tuple((last, last + end) for end in ends))


def mean_parts(of: Sequence[StepParts]) -> StepParts:
    """Field by field."""
    return StepParts(*(sum(column) / len(of) for column in zip(*map(astuple, of))))


def split(timeline: Timeline) -> tuple[StepParts, ...]:
    """The step of each rank, by what it does."""
    ranks = []
    for rank, spans in enumerate(timeline.by_rank):
        seconds: dict[str, float] = defaultdict(float)
        for span in spans:
            seconds[part_of(span.item)] += span.end - span.start
        if timeline.optimizer:
            start, end = timeline.optimizer[rank]
            seconds["optimizer"] = end - start
        ranks.append(StepParts(**seconds, bubble=timeline.idle[rank]))
    return tuple(ranks)


def part_of(item: Item) -> str:
    """The field of StepParts that counts it."""
    if isinstance(item, Overlap):
        return "pairs"
    kinds = {"F": "forward", "W": "weight_gradient"}
    return kinds.get(item.kind, "input_gradient_and_backward")
