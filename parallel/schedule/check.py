"""The check: proves that a schedule table is complete, ordered and free of deadlocks.

First the table: every action is there exactly once, on its rank, and all programs can be followed
to their ends. Then the messages that the lowering adds (check_messages.py).
Each violation is one line that names the rank, the position in its program and the action.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from parallel.schedule.check_messages import check_lowered
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.follow import Walk
from parallel.schedule.lower import Lowered, lower
from parallel.schedule.table import Action, Overlap, Schedule, ScheduleError, actions, at

# What an action computes: B and I both make the input gradient, so either fills that slot.
Slot: TypeAlias = tuple[str, int, int, int]
SLOT_OF_KIND = {"F": "F", "B": "B or I", "I": "B or I", "W": "W"}


@dataclass(frozen=True)
class Report:
    """What a valid table needs.

    peak_in_flight: activations held at once, by rank, in full stages (one P-th of the model each).
    messages: sent in one step of training, by all ranks. lowered: the table with them.
    """

    peak_in_flight: tuple[float, ...]
    messages: int
    lowered: Lowered = field(repr=False)


@collector_paused()
def check(schedule: Schedule) -> Report:
    """Check a table, and its lowering; raise a ScheduleError that names the first violation.

    A table with `training=False` has forwards only; any other has, for every micro-batch on every
    stage, one F and then one B, or one F, one I and one W in this order.
    """
    seen = _check_actions(schedule)
    _check_order(schedule, seen)
    _check_complete(schedule, seen)
    lowered = lower(schedule)
    check_lowered(lowered)
    messages = sum(len(step.sends) for program in lowered.programs for step in program)
    return Report(peak_in_flight(schedule), messages, lowered)


def peak_in_flight(schedule: Schedule) -> tuple[float, ...]:
    """Most activations held at once, by rank, in full stages.

    Held from the start of F to the end of B or W; without training, to the end of F.
    """
    releases = "BW" if schedule.training else "F"
    peaks = []
    for program in schedule.programs:
        held = peak = 0
        for item in program:
            kinds = [action.kind for action in actions(item)]
            held += kinds.count("F")
            peak = max(peak, held)  # before the release: a pair holds both of its micro-batches
            held -= sum(kind in releases for kind in kinds)
        peaks.append(peak * schedule.stage_share)
    return tuple(peaks)


def _slot(action: Action) -> Slot:
    return SLOT_OF_KIND[action.kind], action.flow, action.stage, action.micro_batch


def _slot_text(slot: Slot) -> str:
    kind, flow, stage, micro_batch = slot
    return f"{kind}(flow {flow}, stage {stage}, micro-batch {micro_batch})"


def _needs(action: Action, last_stage: int) -> list[Slot]:
    """What must have run before `action` can."""
    flow, stage, micro_batch = action.flow, action.stage, action.micro_batch
    if action.kind == "F":
        return [("F", flow, stage - 1, micro_batch)] if stage else []
    if action.kind == "W":
        return [("B or I", flow, stage, micro_batch)]
    own: Slot = ("F", flow, stage, micro_batch)
    return [own, ("B or I", flow, stage + 1, micro_batch)] if stage < last_stage else [own]


def _check_actions(schedule: Schedule) -> dict[Slot, tuple[int, int, Action]]:
    """Check that every action is known, on its rank and unique; returns where each slot is
    filled."""
    if len(schedule.programs) != schedule.ranks:
        raise ScheduleError(f"{len(schedule.programs)} programs for {schedule.ranks} ranks")
    if schedule.micro_batches % schedule.flows:
        raise ScheduleError(
            f"{schedule.micro_batches} micro-batches do not divide into {schedule.flows} flows"
        )
    micro_batches = schedule.micro_batches_per_flow
    seen: dict[Slot, tuple[int, int, Action]] = {}
    for rank, position, item in schedule.items():
        if isinstance(item, Overlap) and item.forward.kind + item.backward.kind != "FB":
            raise ScheduleError(f"{at(rank, position, item)} is not a pair of an F and a B")
        for action in actions(item):
            here = at(rank, position, str(action))
            holder = schedule.placement.get((action.flow, action.stage))
            if holder != rank:
                where = "no rank holds it" if holder is None else f"it is placed on rank {holder}"
                raise ScheduleError(f"{here} has a stage that is not on this rank: {where}")
            if not 0 <= action.micro_batch < micro_batches:
                raise ScheduleError(f"{here} is not one of {micro_batches} micro-batches")
            if not schedule.training and action.kind != "F":
                raise ScheduleError(f"{here} in a table of forwards only")
            slot = _slot(action)
            if slot in seen:
                _, earlier, first = seen[slot]
                raise ScheduleError(f"{here} repeats {first} of position {earlier}")
            seen[slot] = rank, position, action
    return seen


def _check_order(schedule: Schedule, seen: dict[Slot, tuple[int, int, Action]]) -> None:
    """Check that all programs can be followed: whatever an item waits for comes before it."""
    walk: Walk[Slot] = Walk()
    done: set[Slot] = set()
    positions = [0] * schedule.ranks

    def run(rank: int) -> Iterator[Slot]:
        last_stage = schedule.stages - 1
        for item in schedule.programs[rank]:
            for action in actions(item):
                for slot in _needs(action, last_stage):
                    if slot not in done:
                        yield slot
            for action in actions(item):
                done.add(_slot(action))
                walk.happen(_slot(action))
            positions[rank] += 1

    stuck = walk.follow(map(run, range(schedule.ranks)))
    if not stuck:
        return
    # The root first: what nobody runs, then what this rank itself runs too late, then a circle.
    rank = min(stuck, key=lambda r: (stuck[r] in seen, seen.get(stuck[r], (r,))[0] != r, r))
    here = at(rank, positions[rank], schedule.programs[rank][positions[rank]])
    if stuck[rank] not in seen:
        raise ScheduleError(f"{here} waits for {_slot_text(stuck[rank])}, which no rank runs")
    source, position, action = seen[stuck[rank]]
    blocker = "comes only" if source == rank else f"cannot run before: rank {source} has it"
    raise ScheduleError(f"{here} waits for {action}, which {blocker} at position {position}")


def _check_complete(schedule: Schedule, seen: dict[Slot, tuple[int, int, Action]]) -> None:
    for (flow, stage), rank in sorted(schedule.placement.items()):
        end = len(schedule.programs[rank])
        for micro_batch in range(schedule.micro_batches_per_flow):
            key = flow, stage, micro_batch
            wanted = ["F", "B or I"] if schedule.training else ["F"]
            for kind in wanted:
                if (kind, *key) not in seen:
                    text = _slot_text((kind, *key))
                    raise ScheduleError(at(rank, end, f"the program ends without {text}"))
            if not schedule.training:
                continue
            split = seen["B or I", *key][2].kind == "I"
            if split and ("W", *key) not in seen:
                text = _slot_text(("W", *key))
                raise ScheduleError(at(rank, end, f"the program ends without {text}"))
            if not split and ("W", *key) in seen:
                _, position, action = seen["W", *key]
                raise ScheduleError(f"{at(rank, position, action)} follows a B, which left none")
