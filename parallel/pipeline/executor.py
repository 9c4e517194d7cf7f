"""The executor: runs one rank's lowered program on real stages.

For each step it posts the receives, runs the item, and issues the sends; an item waits only for
its own inputs. It knows tensors and passes, and neither layers nor what the loss is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from parallel.pipeline.transport import Receive, Transport
from parallel.schedule.lower import Message, Step, received, sent
from parallel.schedule.table import Action, Item, Overlap, Schedule
from parallel.tape.passes import Pass, interleave, run
from parallel.tape.recorder import Recorder, Silence
from parallel.tape.tape import Tape, WeightTiming


class Stage(Protocol):
    """A run of consecutive layers."""

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
            value = loss.value.detach()
            self.losses[loss.name] = self.losses.get(loss.name, 0) + value
        for name, counts in tape.tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + counts


@dataclass
class _Begun:
    """A micro-batch between its forward and its backward on one stage."""

    tape: Tape
    x: Tensor | None
    y: Tensor | None


MicroBatches = Callable[[int, int], Any]
Key = tuple[int, int, int]


@dataclass
class Executor:
    """One rank of a pipeline.

    stages: by (flow, stage). transport: None for a pipeline of one rank. overlap: run the two
    passes of an Overlap interleaved and weight gradients behind collectives; off, everything runs
    one after the other and every collective is waited for at once. on_item: called after each item
    with its begin and end, in seconds of time.monotonic; waits for messages count before the begin.
    """

    schedule: Schedule
    program: tuple[Step, ...]
    stages: Mapping[tuple[int, int], Stage]
    transport: Transport | None
    overlap: bool = True
    recorder: Recorder = field(default_factory=Silence)
    on_item: Callable[[Item, float, float], None] | None = None

    _waited: float = field(init=False)
    _micro_batches: MicroBatches = field(init=False)
    _result: StepResult = field(init=False)
    _in_flight: dict[Key, _Begun] = field(init=False)
    _posted: dict[Message, Receive] = field(init=False)
    _handed_over: dict[tuple[str, Key], Tensor] = field(init=False)
    _ready: dict[Message, Tensor] = field(init=False)
    _unsent: deque[Message] = field(init=False)

    def run(self, micro_batches: MicroBatches) -> StepResult:
        """Run the whole program once. micro_batches(flow, n): the n-th of a flow, for the stages.

        Gradients add up in the parameters' `.grad`. Raises whatever a stage raises; messages may
        then be under way, and the pipeline cannot be used again.
        """
        self._micro_batches = micro_batches
        self._result = StepResult()
        self._in_flight, self._posted, self._handed_over, self._ready = {}, {}, {}, {}
        for step in self.program:
            for message in step.receives:
                self._posted[message] = self._transport.post(message)
            self._unsent = deque(step.sends)
            self._time_item(step.item)
            self._send_ready()
        if self.transport is not None:
            self.transport.finish()
        return self._result

    @property
    def _transport(self) -> Transport:
        if self.transport is None:
            raise ValueError("this program sends messages: it needs a transport")
        return self.transport

    def _time_item(self, item: Item) -> None:
        self._waited = 0.0
        begin = time.monotonic()
        self._run_item(item)
        if self.on_item is not None:
            self.on_item(item, begin + self._waited, time.monotonic())

    def _run_item(self, item: Item) -> None:
        if not isinstance(item, Overlap):
            run(self._pass(item, item.kind))
        elif self.overlap:
            # The backward first: its combine gives the forward's attention something to hide.
            interleave(self._pass(item.backward, "B&"), self._pass(item.forward, "F&"))
        else:
            run(self._pass(item.backward, "B&"))
            run(self._pass(item.forward, "F&"))

    def _pass(self, action: Action, label: str) -> Pass[None]:
        if action.kind == "F":
            return self._forward(action, label)
        if action.kind == "W":
            return self._weights(action)
        return self._backward(action, label)

    def _forward(self, action: Action, label: str) -> Pass[None]:
        tape = Tape(training=self.schedule.training, label=label, recorder=self.recorder)
        x = self._input(action, label)
        if x is not None and self.schedule.training:
            x.requires_grad_()
        stage = self.stages[action.flow, action.stage]
        y = yield from stage.forward(tape, x, self._micro_batches(action.flow, action.micro_batch))
        self._result.add(tape)
        if self.schedule.training:
            self._in_flight[_key(action)] = _Begun(tape, x, y)
        if y is not None:
            self._hand_over(action, y.detach())

    def _backward(self, action: Action, label: str) -> Pass[None]:
        begun = self._in_flight[_key(action)]
        begun.tape.label = label
        if begun.y is not None:
            begun.y.grad = self._input(action, label)
        yield from begun.tape.backward(self._timing(action))
        if begun.x is not None and begun.x.grad is not None:
            self._hand_over(action, begun.x.grad)
        # What hides nothing more must not delay the gradient that the previous stage waits for.
        self._send_ready()
        begun.x = begun.y = None
        if action.kind == "B":
            begun.tape.drain_weight_gradients()
            del self._in_flight[_key(action)]

    def _weights(self, action: Action) -> Pass[None]:
        begun = self._in_flight.pop(_key(action))
        begun.tape.label = "W"
        begun.tape.drain_weight_gradients()
        yield from ()

    def _timing(self, action: Action) -> WeightTiming:
        if action.kind == "I":
            return WeightTiming.LATER
        return WeightTiming.BEHIND if self.overlap else WeightTiming.AT_ONCE

    def _input(self, action: Action, label: str) -> Tensor | None:
        """What the action computes on, waited for; None where it starts from the micro-batch."""
        message = received(self.schedule, action)
        if message is None:
            return self._handed_over.pop((_direction(action), _key(action)), None)
        begin = time.monotonic()
        with self.recorder.span(label, "wait", message.kind):
            tensor = self._posted.pop(message).wait()
        self._waited += time.monotonic() - begin
        return tensor

    def _hand_over(self, action: Action, tensor: Tensor) -> None:
        """Give an output to the next stage: a message to send, or directly on the same rank."""
        message = sent(self.schedule, action)
        if message is not None:
            self._ready[message] = tensor
            return
        direction = _direction(action)
        stage = action.stage + 1 if direction == "forward" else action.stage - 1
        self._handed_over[direction, (action.flow, stage, action.micro_batch)] = tensor

    def _send_ready(self) -> None:
        """Send what is ready, in the order of the table: a channel is first in, first out."""
        while self._unsent and self._unsent[0] in self._ready:
            message = self._unsent.popleft()
            self._transport.send(message, self._ready.pop(message))


def _direction(action: Action) -> str:
    return "forward" if action.kind == "F" else "backward"


def _key(action: Action) -> Key:
    return action.flow, action.stage, action.micro_batch
