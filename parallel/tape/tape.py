"""The tape: what a forward pass records, and the backward pass that it gives for free.

A layer is written once, forward only, in plain PyTorch. The rules:

1. A collective is `yield from tape.exchange("dispatch", collective, x, across=(y,))`. What was
   made before it and is read after it goes through it, as `across`.
2. What is not worth its memory is `tape.compute(f, x, recompute=True)`: only x is kept, and f runs
   again in the backward. `tape.release(x)`, at the end of a layer, and every exchange say that
   its readers have run.
3. A loss is given to `tape.add_loss`, a count to `tape.add_tally`.
4. All state of a micro-batch is on its tape and never on a module: two are in flight at once.

Between two exchanges lies a region, one graph with one backward. The backward of a pass is generic:
region by region, last first, with each collective reversed, started, and yielded. Nothing in a
layer knows about pipelines, overlap, or the other micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parallel.tape.collective import Collective, Pending, Startable
from parallel.tape.offload import Offloaded
from parallel.tape.passes import Pass, require_no_pass
from parallel.tape.recompute import Recomputing, Release
from parallel.tape.recorder import Recorder, Silence, What
from parallel.tape.region import Exchange, Region
from parallel.tape.weight_gradients import WeightGradients, WeightTiming


@dataclass(frozen=True)
class Loss:
    """A scalar that stages report. value: without a graph."""

    name: str
    value: Tensor


@dataclass
class Tape:
    """One micro-batch on one stage.

    training: False records nothing and keeps no graph.
    label: names the pass in recorded events. layer: the layer that it is in, for the same; whoever
    runs the layers sets it in the forward, and the backward follows.
    weight_gradients: those of this micro-batch that wait. deferred: where the layers of the stage
    leave theirs (parallel/ops); the tape takes them after each region's backward.
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
    _regions: list[Region] = field(default_factory=list)
    _computing: AbstractContextManager[None] = field(default_factory=nullcontext)
    _recomputing: Recomputing = field(default_factory=Recomputing)

    # ---- forward: for layers ----

    def compute(self, function: Callable[..., Any], *inputs: Any, recompute: bool = False) -> Any:
        """`function(*inputs)`.

        recompute: keep the inputs only. The outputs are freed at the next `release`, or exchange,
        and computed again in the backward, so nothing after that may read them. Inside of what is
        recomputed it says nothing new.
        """
        require_no_pass(function.__qualname__, inputs)
        recompute = recompute and self.training and torch.is_grad_enabled()
        if not recompute or self._recomputing.restoring:
            return function(*inputs)
        return self._recomputing.call(function, inputs)

    def release(self, x: Tensor) -> Tensor:
        """x, after freeing all else that recomputed functions gave since the last release."""
        recomputed = self._recomputing.release([x])
        if not recomputed:
            return x
        return Release.apply(x, partial(self._recomputing.restore, recomputed))

    @contextmanager
    def offload(self, really: bool = True) -> Iterator[None]:
        """Within, which may hold no exchange, what is saved for the backward goes to the host, and
        comes back before it."""
        if not (really and self.training):
            yield
            return
        offloaded = Offloaded()
        self._regions[-1].offloaded.append(offloaded)
        with offloaded.saving():
            yield

    def exchange(
        self,
        name: str,
        collective: Collective,
        *tensors: Tensor,
        across: Sequence[Tensor] = (),
        turns: int = 1,
    ) -> Pass[tuple[Tensor, ...]]:
        """Start a collective on `tensors`, yield, and return what arrives, and then `across`.
        What arrives is as many tensors, and then more, if any, which have no gradients.

        across: what was computed before the exchange and is read after it. turns: how often the
        backward yields while the reverse is in flight. Two where the forward of the layer has
        yielded for counts, so that two passes of like layers keep step; the weight gradients come
        between them.
        """
        require_no_pass(name, (*tensors, *across))
        self._computing.__exit__(None, None, None)
        pending = self._start(name, collective, tuple(tensor.detach() for tensor in tensors))
        kept = across if collective.copies else (*tensors, *across)
        crossing = Exchange(name, collective, len(tensors), len(across), turns)
        self._leave((*tensors, *across), kept, crossing)
        del tensors, kept  # so that what was sent dies when it has arrived
        yield
        self._wait(name, pending)
        self._compute_on(f"after {name}")
        return self._enter(f"after {name}", (*pending.results(), *across))

    def exchange_counts(
        self, name: str, exchange: Startable, counts: Tensor
    ) -> Pass[Callable[[], tuple[Tensor, ...]]]:
        """Start an exchange of integers, which has no backward, and yield. Call what it returns to
        wait for the results."""
        self._computing.__exit__(None, None, None)
        pending = self._start(name, exchange, (counts,))
        yield
        self._compute_on(f"beside {name}")
        return partial(self._counts, name, pending)

    def add_loss(self, name: str, value: Tensor) -> None:
        """Make the scalar `value` part of what the backward differentiates.

        The total loss is the sum over all that were added, each times the weight of its name.
        """
        self.losses.append(Loss(name, value.detach()))
        if not self.training:
            return
        if name not in self.loss_weights:
            raise ValueError(f"the loss {name!r} has no weight: the step must give it one")
        self._regions[-1].add_loss(value, self.loss_weights[name])

    def add_tally(self, name: str, counts: Tensor) -> None:
        """Report integer counts, such as the tokens routed to each expert."""
        self.tallies[name] = counts

    # ---- forward: for whoever runs a stage ----

    def begin(self, x: Tensor | None = None) -> Tensor | None:
        """Start the pass from x, the output of the stage before; the first stage has none."""
        self._compute_on("from the start")
        entered = self._enter("from the start", () if x is None else (x,))
        return entered[0] if entered else None

    def end(self, y: Tensor | None = None) -> Tensor | None:
        """End it with y, for the stage after; the last has none. Returns y without its graph."""
        require_no_pass("the end of a stage", (y,))
        self._computing.__exit__(None, None, None)
        values = () if y is None else (y,)
        self._leave(values, values)
        return None if y is None else y.detach()

    # ---- backward ----

    def backward(self, timing: WeightTiming, gradient: Tensor | None = None) -> Pass[Tensor | None]:
        """The backward pass. gradient: of what the forward ended with, if anything.

        Returns the gradient of what it began with. Weight gradients run at the time that `timing`
        says, those of the first region never, where there is such a gradient: the caller hands it
        on first, then drains them.
        """
        arrived: Callable[[], Sequence[Tensor | None]] | None = None
        of_entered: Sequence[Tensor | None] = ()
        while self._regions:
            region = self._regions.pop()
            self.layer = region.layer
            self._restore(region)
            self.deferred.waits = self._weights_wait(region, timing)
            with self._span("compute", region.name):
                region.backward((gradient,) if arrived is None else arrived())
            self.weight_gradients.take(self.deferred)
            of_entered = region.gradients
            if self._regions:
                arrived = yield from self._reverse(region, timing)
        return of_entered[0] if of_entered else None

    def drain_weight_gradients(self) -> None:
        """Compute all weight gradients that are queued."""
        if len(self.weight_gradients):
            with self._span("weights", "weights"):
                self.weight_gradients.drain()

    def _weights_wait(self, region: Region, timing: WeightTiming) -> bool:
        """Whether there is anything that the weight gradients of this region had better follow."""
        if timing is WeightTiming.LATER:
            return True
        if self._regions:
            return timing is WeightTiming.WHILE_IN_FLIGHT
        return region.begins_with_values

    def _reverse(
        self, region: Region, timing: WeightTiming
    ) -> Pass[Callable[[], Sequence[Tensor | None]]]:
        """From the gradients of what entered `region` to those of what left the one before, which
        are computed from what has arrived when they are asked for."""
        before = self._regions[-1]
        exchange = before.exchange
        assert exchange is not None  # there is a region after it
        self.layer, name = before.layer, exchange.name
        wanted = before.wants_gradient[: exchange.sent]
        grads = tuple(region.gradient(i) for i, is_wanted in enumerate(wanted) if is_wanted)
        pending = self._start(name, exchange.collective.reversed(), grads)
        for _ in range(exchange.turns - 1):
            yield
            self.layer = before.layer
        if timing is WeightTiming.WHILE_IN_FLIGHT:
            self.drain_weight_gradients()
        if timing is not WeightTiming.AT_ONCE:
            self._restore(before)  # needs no gradient, so it can run now
        yield
        self.layer = before.layer
        self._wait(name, pending)
        across = region.gradients[len(region.gradients) - exchange.across :]

        def gradients() -> Sequence[Tensor | None]:
            results = iter(pending.results())
            sent = [next(results) if is_wanted else None for is_wanted in wanted]
            return [*sent, *across]

        return gradients

    # ---- regions and recompute ----

    def _enter(self, name: str, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not self.training:
            return tuple(values)
        self._regions.append(Region(name))
        return self._regions[-1].enter(values)

    def _compute_on(self, name: str) -> None:
        self._computing = self._span("compute", name)
        self._computing.__enter__()

    def _leave(
        self, values: Sequence[Tensor], kept: Sequence[Tensor], exchange: Exchange | None = None
    ) -> None:
        """The region ends. kept: what of these values must keep its memory."""
        if self.training:
            region = self._regions[-1]
            region.leave(values, exchange, self.layer)
            region.recomputed = self._recomputing.release(kept)

    def _restore(self, region: Region) -> None:
        """What has been recomputed or offloaded in it, if not done yet."""
        region.fetch()
        calls, region.recomputed = region.recomputed, []
        if calls:
            with self._span("recompute", region.name):
                self._recomputing.restore(calls)

    def _span(self, what: What, name: str) -> AbstractContextManager[None]:
        return self.recorder.span(self.label, what, name, self.layer)

    # ---- collectives ----

    def _start(self, name: str, collective: Startable, tensors: tuple[Tensor, ...]) -> Pending:
        with self._span("start", name):
            pending = collective.start(*tensors)
        self.recorder.flight(self.label, name, time.perf_counter(), pending)
        return pending

    def _wait(self, name: str, pending: Pending) -> None:
        with self._span("wait", name):
            pending.wait()

    def _counts(self, name: str, pending: Pending) -> tuple[Tensor, ...]:
        self._computing.__exit__(None, None, None)
        self._wait(name, pending)
        self._compute_on(f"after {name}")
        return pending.results()
