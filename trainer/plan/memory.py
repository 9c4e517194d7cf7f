"""The memory of each pipeline rank, at the moment of a step at which it needs most.

What the passes need is measured by running them (pass_memory.py), what weights, gradients and their
update need by making the optimizer and running it (state_memory.py), and what is in flight is
followed through the rank's own program (held_memory.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parallel.schedule.lower import lower
from parallel.schedule.table import Schedule
from trainer.build.part import partition_of
from trainer.config.schema import Config
from trainer.plan.datasheets import Machine
from trainer.plan.held_memory import Moment, moments
from trainer.plan.one_stage import StageKind, kind_of_stage
from trainer.plan.pass_memory import stage_memory
from trainer.plan.plannable import require_plannable
from trainer.plan.state_memory import StateMemory, state_memory


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank when it needs most.

    weights: with tables, router biases, and copies in fp8 that a step keeps. masters: float32
    copies of narrower weights. activations: on the tapes of all micro-batches in flight. buffers:
    messages posted or on their way, and what an all-to-all in flight sends and receives. transient:
    what the item of the table that runs, or the end of the step, needs beyond these. margin: left
    free for fragmentation. at: what runs then. host: on
    the host in place of the GPU, for the optimizer.
    """

    weights: int
    gradients: int
    masters: int
    moments: int
    activations: int
    buffers: int
    transient: int
    margin: int
    at: str
    host: int = 0

    @property
    def needed(self) -> int:
        """Without the margin."""
        state = self.weights + self.gradients + self.masters + self.moments
        return state + self.activations + self.buffers + self.transient

    @property
    def total(self) -> int:
        return self.needed + self.margin

    def fits(self, machine: Machine) -> bool:
        return self.total <= machine.memory


def memory_by_rank(config: Config, schedule: Schedule, machine: Machine) -> tuple[RankMemory, ...]:
    """By pipeline rank, of the first rank at each place. No process group exists before. Raises
    ConfigError."""
    require_plannable(config)
    partition = partition_of(config, schedule)
    kinds = [kind_of_stage(config, partition, stage) for stage in range(schedule.stages)]
    of_kind = {kind: stage_memory(config, kind) for kind in set(kinds)}
    stages = [of_kind[kind] for kind in kinds]
    states: dict[tuple[object, ...], StateMemory] = {}
    ranks = []
    for rank, program in enumerate(lower(schedule).programs):
        alike = _holds(schedule, kinds, rank)
        if alike not in states:
            states[alike] = state_memory(config, schedule, partition, rank)
        during = moments(config, schedule, stages, program)
        kept = sum(stages[stage].kept for stage in {s for _, s in schedule.stages_of(rank)})
        ranks.append(_at_its_peak(config, machine, states[alike], kept, during))
    return tuple(ranks)


def _holds(schedule: Schedule, kinds: Sequence[StageKind], rank: int) -> tuple[object, ...]:
    """What the state of a rank depends on: the stages that it holds, and how many ranks hold each
    with it."""
    holders = Counter(stage for _, stage in schedule.placement)
    held = {stage for _, stage in schedule.stages_of(rank)}
    return tuple((kinds[stage], holders[stage]) for stage in sorted(held))


def _at_its_peak(
    config: Config, machine: Machine, state: StateMemory, kept: int, during: Iterable[Moment]
) -> RankMemory:
    end = Moment(0, 0, state.update, "update of the weights")
    most = max((*during, end), key=lambda moment: moment.bytes)
    return RankMemory(
        weights=state.weights + kept,
        gradients=state.gradients,
        masters=state.masters,
        moments=state.moments,
        activations=most.activations,
        buffers=most.buffers,
        transient=most.transient,
        margin=round(config.plan.memory_margin * machine.memory),
        at=most.at,
        host=state.host,
    )
