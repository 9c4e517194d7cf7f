"""The tape: what a forward pass records, and the backward pass that it gives for free.

A layer is written once, forward only, from two moves:

    y = tape.compute(f, x)                                      # a segment, cut from the graph
    (y,) = yield from tape.exchange("dispatch", collective, x)  # a collective; others run meanwhile

`compute` runs f with grad and turns its outputs into fresh leaves, so that the graph of a pass is
a chain of small graphs. The backward is generic: it pops the tape; a segment is one
`torch.autograd.backward` into its input leaves, a collective is its own reverse, started and
yielded. Nothing in a layer knows about pipelines, overlap, or the other micro-batch.

All state of a micro-batch lives here and never on a module, because two are in flight at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor

from parallel.tape.collective import Collective, Pending
from parallel.tape.passes import Pass
from parallel.tape.recorder import Recorder, Silence, What
from parallel.tape.segment import Segment, address, as_tuple, leaf_of
from parallel.tape.weight_gradients import WeightGradients


class WeightTiming(Enum):
    """When a backward pass runs the weight gradients that its segments queue."""

    WHILE_IN_FLIGHT = "while the next reverse collective is in flight"  # B
    AT_ONCE = "before the next reverse collective starts"  # B with overlap off: hides nothing
    LATER = "not in this pass"  # I; the schedule's W drains the queue


@dataclass
class _Exchange:
    name: str
    collective: Collective
    inputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    layer: str


@dataclass
class _Release:
    segments: list[Segment]


@dataclass
class Loss:
    """A scalar leaf that the backward starts from: its gradient is the weight of its name."""

    name: str
    value: Tensor


@dataclass
class Tape:
    """One micro-batch on one stage.

    training: False records nothing and keeps no graph.
    label: names the pass in recorded events. layer: the layer that it is in, for the same; whoever
    runs the layers sets it in the forward, and the backward follows.
    weight_gradients: those of this micro-batch that wait. deferred: where the layers of the stage
    leave theirs (parallel/ops); the tape takes them after each segment's backward.
    loss_weights: of each loss in the total, by name. losses: scalars added by `add_loss`. tallies:
    integer counts added by `add_tally`, by name.
    """

    training: bool = True
    label: str = "F"
    recorder: Recorder = field(default_factory=Silence)
    weight_gradients: WeightGradients = field(default_factory=WeightGradients)
    deferred: WeightGradients = field(default_factory=WeightGradients)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    tallies: dict[str, Tensor] = field(default_factory=dict)
    layer: str = ""
    _entries: list[Segment | _Exchange | _Release] = field(default_factory=list)
    _recomputed: list[Segment] = field(default_factory=list)

    # ---- forward ----

    def compute(self, function: Callable[..., Any], *inputs: Any, recompute: bool = False) -> Any:
        """Run `function(*inputs)` as a segment and return its outputs as leaves.

        recompute: keep the inputs only. The outputs are freed at the next `release` (every exchange
        is one) and computed again in the backward, so only segments before that may read them.
        """
        name = function.__qualname__
        require_no_pass(name, inputs)
        if self.training:
            _require_leaves(name, inputs)
        keep_graph = torch.set_grad_enabled(self.training and not recompute)
        with self._span("compute", name), keep_graph:
            result = function(*inputs)
        outputs = as_tuple(result)
        require_no_pass(name, outputs)
        if not self.training:
            return result
        leaves = tuple(leaf_of(output) for output in outputs)
        segment = Segment(function, inputs, () if recompute else outputs, leaves, self.layer)
        self._entries.append(segment)
        if recompute:
            self._recomputed.append(segment)
        return leaves if isinstance(result, tuple) else leaves[0]

    def release(self) -> None:
        """Free what recomputed segments gave since the last release: their readers have run."""
        if self._recomputed:
            for segment in self._recomputed:
                segment.release()
            self._entries.append(_Release(self._recomputed))
            self._recomputed = []

    def exchange(
        self, name: str, collective: Collective, *tensors: Tensor
    ) -> Pass[tuple[Tensor, ...]]:
        """Start a collective, yield, and return what arrives, as leaves.

        Outputs of recomputed segments cannot be exchanged: they are freed while it is in flight.
        """
        require_no_pass(name, tensors)
        _require_leaves(name, tensors)
        released = {address(leaf) for s in self._recomputed for leaf in s.leaves}
        if any(tensor.numel() and address(tensor) in released for tensor in tensors):
            raise ValueError(f"{name}: a recomputed output cannot be sent; compute a segment on it")
        pending = self._start(name, collective, tuple(tensor.detach() for tensor in tensors))
        self.release()
        yield
        arrived = self._wait(name, pending)
        if not self.training:
            return arrived
        leaves = tuple(leaf_of(tensor) for tensor in arrived)
        self._entries.append(_Exchange(name, collective, tensors, leaves, self.layer))
        return leaves

    def exchange_counts(
        self, name: str, collective: Collective, counts: Tensor
    ) -> Callable[[], Tensor]:
        """Start a collective of integers, which has no backward; call the result to wait for it."""
        pending = self._start(name, collective, (counts,))
        return lambda: self._wait(name, pending)[0]

    def add_loss(self, name: str, value: Tensor) -> None:
        """Make `value`, a scalar output of a segment, part of what the backward differentiates.

        The total loss is the sum over all that were added, each times the weight of its name.
        """
        if self.training and name not in self.loss_weights:
            raise ValueError(f"the loss {name!r} has no weight: the step must give it one")
        self.losses.append(Loss(name, value))

    def add_tally(self, name: str, counts: Tensor) -> None:
        """Report integer counts, such as the tokens routed to each expert."""
        self.tallies[name] = counts

    # ---- backward ----

    def backward(self, timing: WeightTiming) -> Pass[None]:
        """The backward pass of all that is on the tape, last first.

        The gradient of the output must be in the output leaf's `.grad`; the gradient of the input
        is then in the input leaf's. Weight gradients run at the time that `timing` says, those of
        the last segment never: the caller hands the input gradient on first, then drains them.
        """
        for loss in self.losses:
            loss.value.grad = torch.full_like(loss.value, self.loss_weights[loss.name])
        while self._entries:
            entry = self._entries.pop()
            if isinstance(entry, _Exchange):
                yield from self._reverse(entry, timing)
            elif isinstance(entry, _Release):
                self._restore(entry)
            else:
                self.layer = entry.layer
                with self._span("compute", entry.function.__qualname__):
                    entry.backward()
                self.weight_gradients.take(self.deferred)

    def drain_weight_gradients(self) -> None:
        """Compute all weight gradients that are queued."""
        if len(self.weight_gradients):
            with self._span("weights", "weights"):
                self.weight_gradients.drain()

    def _reverse(self, entry: _Exchange, timing: WeightTiming) -> Pass[None]:
        """Carry the gradients of a collective's results back to its inputs."""
        self.layer = entry.layer
        sources = [source for source in entry.inputs if source.requires_grad]
        grads = tuple(
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for leaf, source in zip(entry.leaves, entry.inputs)
            if source.requires_grad
        )
        if timing is WeightTiming.AT_ONCE:
            self.drain_weight_gradients()
        pending = self._start(entry.name, entry.collective.reversed(), grads)
        if timing is WeightTiming.WHILE_IN_FLIGHT:
            self.drain_weight_gradients()
        below = self._entries[-1] if self._entries else None
        if timing is not WeightTiming.AT_ONCE and isinstance(below, _Release):
            self._restore(self._entries.pop())  # needs no gradient, so it can run now
        yield
        self.layer = entry.layer
        for source, grad in zip(sources, self._wait(entry.name, pending)):
            source.grad = grad if source.grad is None else source.grad + grad

    def _restore(self, entry: Any) -> None:
        for segment in entry.segments:
            self.layer = segment.layer
            with self._span("recompute", segment.function.__qualname__):
                segment.restore()

    def _span(self, what: What, name: str) -> AbstractContextManager[None]:
        return self.recorder.span(self.label, what, name, self.layer)

    # ---- collectives ----

    def _start(self, name: str, collective: Collective, tensors: tuple[Tensor, ...]) -> Pending:
        start = time.perf_counter()
        with self._span("start", name):
            pending = collective.start(*tensors)
        self.recorder.flight(self.label, name, start, pending)
        return pending

    def _wait(self, name: str, pending: Pending) -> tuple[Tensor, ...]:
        with self._span("wait", name):
            return pending.wait()


def require_no_pass(name: str, values: tuple[Any, ...]) -> None:
    """Raise TypeError for a pass among tensors, which somebody has forgotten to run."""
    for value in values:
        if isinstance(value, GeneratorType):
            raise TypeError(
                f"{name}: the pass {value.gi_code.co_qualname} is never run: "
                "write `yield from` in front of the call that makes it"
            )


def _require_leaves(name: str, inputs: tuple[Any, ...]) -> None:
    for value in inputs:
        if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
            raise ValueError(
                f"{name}: an input of shape {tuple(value.shape)} was computed outside the tape, "
                "where no backward would find it: wrap what makes it in tape.compute"
            )
