"""A short program in which every kind of item of a rank's program comes once.

Two items are of one kind if they differ only in their micro-batches: what a pass sends does not
depend on which micro-batch it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from parallel.pipeline.completions import completions
from parallel.schedule.lower import Step, inputs, outputs
from parallel.schedule.table import Action, Item, Kind, Overlap, Schedule, actions


def kind_of(item: Item) -> tuple[tuple[Kind, int, int], ...]:
    """(kind, flow, stage) of each of its actions."""
    return tuple((action.kind, action.flow, action.stage) for action in actions(item))


def completion_order(program: Iterable[Step]) -> list[int]:
    """The stages of a rank, in the order in which their gradients are complete."""
    done = completions(tuple(program))
    return [stage for number in sorted(done) for stage in done[number]]


def distinct_items(schedule: Schedule, program: Iterable[Step]) -> tuple[Step, ...]:
    """The short program of the rank that has `program`. Its micro-batches are numbered anew. The
    gradients of stages are complete in the same order as in `program`.

    Items of other kinds are added where those of the program need what they make.
    """
    steps = list(program)
    writer = _Writer(schedule)
    for item in {kind_of(step.item): step.item for step in steps}.values():
        writer.write(item)
    writer.finish()
    order = completion_order(steps)
    if completion_order(writer.steps()) != order:
        places = {(a.flow, a.stage) for step in steps for a in actions(step.item)}
        for stage in order:
            for flow in sorted(flow for flow, of_flow in places if of_flow == stage):
                writer.write(Action("B", flow, stage, 0))
        writer.finish()
    return tuple(writer.steps())


@dataclass
class _Writer:
    """Appends items, each after those that it needs on this rank."""

    schedule: Schedule
    items: list[Item] = field(default_factory=list)
    done: set[Action] = field(default_factory=set)

    def steps(self) -> Iterator[Step]:
        for item in self.items:
            waits = inputs(self.schedule, item)
            yield Step(waits, item, outputs(self.schedule, item), waits)

    def write(self, item: Item) -> None:
        """An item of this kind, of micro-batches for which it has not been done."""
        if not isinstance(item, Overlap):
            self._append(self._next(item))
            return
        backward = self._next(item.backward)
        self.done.add(backward)  # so that the forward is of another micro-batch
        forward = self._next(item.forward)
        self.items.append(Overlap(forward, backward))
        self.done.add(forward)

    def finish(self) -> None:
        """All backward passes and weight gradients of what has been started."""
        for action in sorted(self.done, key=lambda a: (a.flow, -a.stage, a.micro_batch)):
            if action.kind == "F" and not self._has_backward(action):
                self._do(self._as("B", action))
            if action.kind == "I":
                self._do(self._as("W", action))

    def _next(self, like: Action) -> Action:
        """The action of the first micro-batch that it can be done for; what it needs is done."""
        for number in count():
            action = Action(like.kind, like.flow, like.stage, number)
            if self._is_done(action):
                continue
            fresh = all(a.micro_batch != number or a.flow != like.flow for a in self.done)
            needs, exactly = self._needs(action), action.kind == "W"  # a B leaves no weights to do
            if fresh or all(n in self.done if exactly else self._is_done(n) for n in needs):
                for need in self._needs(action):
                    self._do(need)
                return action
        raise AssertionError("numbers never end")

    def _do(self, action: Action) -> None:
        """This action, after what it needs, unless it is done."""
        if not self._is_done(action):
            for need in self._needs(action):
                self._do(need)
            self._append(action)

    def _append(self, action: Action) -> None:
        self.items.append(action)
        self.done.add(action)

    def _needs(self, action: Action) -> list[Action]:
        """What has to be done on this rank before."""
        flow, stage = action.flow, action.stage
        if action.kind == "W":
            return [self._as("I", action)]
        if action.kind == "F":
            return [Action("F", flow, stage - 1, action.micro_batch)] * self._is_here(
                flow, stage - 1, stage
            )
        later = [Action("B", flow, stage + 1, action.micro_batch)]
        return [self._as("F", action), *later * self._is_here(flow, stage + 1, stage)]

    def _is_here(self, flow: int, stage: int, beside: int) -> bool:
        placement = self.schedule.placement
        return placement.get((flow, stage)) == placement[flow, beside]

    def _is_done(self, action: Action) -> bool:
        return self._has_backward(action) if action.kind in "BI" else action in self.done

    def _has_backward(self, action: Action) -> bool:
        return self._as("B", action) in self.done or self._as("I", action) in self.done

    @staticmethod
    def _as(kind: Kind, action: Action) -> Action:
        return Action(kind, action.flow, action.stage, action.micro_batch)
