"""The executor: runs one rank's lowered program on real stages.

For each step it posts the receives, runs the item, and issues the sends; an item waits only for its
own inputs. It knows tensors and passes, but neither layers nor the loss.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from parallel.pipeline.completions import completions
from parallel.pipeline.transport import Receive, Transport
from parallel.schedule.lower import Message, Step, received, sent
from parallel.schedule.table import Action, Item, Overlap, Schedule
from parallel.tape.passes import Pass, interleave, run
from parallel.tape.recorder import Recorder, Silence, paired
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, WeightTiming


class Stage(Protocol):
    """A run of consecutive layers."""

    @property
    def deferred(self) -> WeightGradients:
        """Where the backward of its layers leaves weight gradients."""

    def forward(self, tape: Tape, x: Tensor | None, micro_batch: Any) -> Pass[Tensor | None]:
        """The forward pass. x is None in the first stage, the result is None in the last, which
        adds its losses to the tape."""


@dataclass
class StepResult:
    """What the passes of one run reported, summed over micro-batches.

    losses: by name, unweighted sums of the values that stages added. tallies: by name.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    tallies: dict[str, Tensor] = field(default_factory=dict)

    def add(self, tape: Tape) -> None:
        for loss in tape.losses:
            self.losses[loss.name] = self.losses.get(loss.name, 0) + loss.value
        for name, counts in tape.tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + counts


MicroBatches = Callable[[int, int], Any]
Key = tuple[int, int, int]


@dataclass
class Executor:
    """One rank of a pipeline.

    stages: by (flow, stage). transport: None for a pipeline of one rank. overlap: run the two
    passes of an Overlap interleaved and weight gradients while collectives are in flight; off,
    everything runs in sequence and every collective is waited for immediately. on_item: called
    after each item with its start and end, in seconds of time.monotonic; waits for messages come
    before the start. on_completed: called with a stage as soon as this rank has done all that adds
    to its gradients.
    """

    schedule: Schedule
    program: tuple[Step, ...]
    stages: Mapping[tuple[int, int], Stage]
    transport: Transport | None
    overlap: bool = True
    recorder: Recorder = field(default_factory=Silence)
    on_item: Callable[[Item, float, float], None] | None = None
    on_completed: Callable[[int], None] = lambda stage: None
    completed: Mapping[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        """Raises ValueError for a program with messages and no transport to carry them."""
        if self.transport is None and any(step.sends or step.receives for step in self.program):
            raise ValueError("this program sends messages: it needs a transport")
        self.completed = completions(self.program)

    def run(
        self, micro_batches: MicroBatches, loss_weights: Mapping[str, float] | None = None
    ) -> StepResult:
        """Run the whole program once. micro_batches(flow, n): the n-th of a flow, for the stages.
        loss_weights: of each loss that they add, in the total that is differentiated.

        Gradients accumulate where the layers' weights keep them. Raises whatever a stage raises;
        messages may then be in flight, and the pipeline cannot be used again.
        """
        with torch.set_grad_enabled(self.schedule.training):
            return _Run(self, micro_batches, loss_weights or {}).go()


@dataclass
class _Run:
    """One run of a program.

    in_flight: tapes of micro-batches between their forward and their backward. posted: receives.
    ready: messages whose tensors are there. unsent: those of the item that is running, in the order
    of the table. handed_over: outputs whose reader is on this rank, by direction. waited: seconds
    for the messages of the item that is running.
    """

    executor: Executor
    micro_batches: MicroBatches
    loss_weights: Mapping[str, float]
    result: StepResult = field(default_factory=StepResult)
    in_flight: dict[Key, Tape] = field(default_factory=dict)
    posted: dict[Message, Receive] = field(default_factory=dict)
    ready: dict[Message, Tensor] = field(default_factory=dict)
    unsent: deque[Message] = field(default_factory=deque)
    handed_over: dict[tuple[str, Key], Tensor] = field(default_factory=dict)
    waited: float = 0.0

    def go(self) -> StepResult:
        program, note = self.executor.program, self.executor.recorder.note
        for number, step in enumerate(program, start=1):
            note(f"item {number} of {len(program)}: {step.item}")
            for message in step.receives:
                self.posted[message] = self.transport.post(message)
            self.unsent = deque(step.sends)
            self.time_item(step.item)
            self.send_ready()
            for stage in self.executor.completed.get(number, ()):
                self.executor.on_completed(stage)
        if self.executor.transport is not None:
            note("sends of the last items")
            self.transport.finish()
        return self.result

    @property
    def transport(self) -> Transport:
        assert self.executor.transport is not None  # the executor has made sure
        return self.executor.transport

    def time_item(self, item: Item) -> None:
        self.waited = 0.0
        start = time.monotonic()
        self.run_item(item)
        if self.executor.on_item is not None:
            self.executor.on_item(item, start + self.waited, time.monotonic())

    def run_item(self, item: Item) -> None:
        if not isinstance(item, Overlap):
            run(self.make_pass(item, item.kind))
            return
        # The backward first: its combine gives the forward's attention something to hide.
        backward = self.make_pass(item.backward, paired(item.backward.kind))
        forward = self.make_pass(item.forward, paired(item.forward.kind))
        if self.executor.overlap:
            interleave(backward, forward)
        else:
            run(backward)
            run(forward)

    def make_pass(self, action: Action, label: str) -> Pass[None]:
        if action.kind == "F":
            return self.forward(action, label)
        if action.kind == "W":
            return self.weights(action)
        return self.backward(action, label)

    def forward(self, action: Action, label: str) -> Pass[None]:
        stage = self.executor.stages[action.flow, action.stage]
        training = self.executor.schedule.training
        tape = Tape(
            training,
            label,
            self.executor.recorder,
            deferred=stage.deferred,
            loss_weights=self.loss_weights,
        )
        x = tape.begin(self.input(action, label))
        y = yield from stage.forward(tape, x, self.micro_batches(action.flow, action.micro_batch))
        y = tape.end(y)
        self.result.add(tape)
        if training:
            self.in_flight[_key(action)] = tape
        if y is not None:
            self.hand_over(action, y)

    def backward(self, action: Action, label: str) -> Pass[None]:
        tape = self.in_flight[_key(action)]
        tape.label = label
        gradient = yield from tape.backward(self.timing(action), self.input(action, label))
        if gradient is not None:
            self.hand_over(action, gradient)
        # Weight gradients that hide nothing must not delay the gradient that the previous stage
        # waits for.
        self.send_ready()
        if action.kind == "B":
            tape.drain_weight_gradients()
            del self.in_flight[_key(action)]

    def weights(self, action: Action) -> Pass[None]:
        tape = self.in_flight.pop(_key(action))
        tape.label = action.kind
        tape.drain_weight_gradients()
        yield from ()

    def timing(self, action: Action) -> WeightTiming:
        if action.kind == "I":
            return WeightTiming.LATER
        overlap = self.executor.overlap
        return WeightTiming.WHILE_IN_FLIGHT if overlap else WeightTiming.AT_ONCE

    def input(self, action: Action, label: str) -> Tensor | None:
        """Wait for the input of the action; None where it starts from the micro-batch."""
        message = received(self.executor.schedule, action)
        if message is None:
            return self.handed_over.pop((_direction(action), _key(action)), None)
        start = time.monotonic()
        with self.executor.recorder.span(label, "wait", message.kind):
            tensor = self.posted.pop(message).wait()
        self.waited += time.monotonic() - start
        return tensor

    def hand_over(self, action: Action, tensor: Tensor) -> None:
        """Give an output to the next stage: a message to send, or directly on the same rank."""
        message = sent(self.executor.schedule, action)
        if message is not None:
            self.ready[message] = tensor
            return
        direction = _direction(action)
        stage = action.stage + 1 if direction == "forward" else action.stage - 1
        self.handed_over[direction, (action.flow, stage, action.micro_batch)] = tensor

    def send_ready(self) -> None:
        """Send what is ready, in the order of the table: a channel is first in, first out."""
        while self.unsent and self.unsent[0] in self.ready:
            message = self.unsent.popleft()
            self.transport.send(message, self.ready.pop(message))


def _direction(action: Action) -> str:
    return "forward" if action.kind == "F" else "backward"


def _key(action: Action) -> Key:
    return action.flow, action.stage, action.micro_batch
