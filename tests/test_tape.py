"""The tape on a toy: its backward is autograd's, whatever is cut, delayed, sent or recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.ops.embedding import embedding
from parallel.ops.linear import linear
from parallel.tape.passes import Pass, interleave, run
from parallel.tape.recorder import EventLog
from parallel.tape.tape import Tape, WeightTiming
from parallel.tape.weight_gradients import WeightGradients

WIDTH, ROWS = 5, 6
NAMES = ("table", "first", "second", "third")


@dataclass(frozen=True)
class Arrived:
    tensors: tuple[Tensor, ...]

    def wait(self) -> tuple[Tensor, ...]:
        return self.tensors


@dataclass(frozen=True)
class Shuffle:
    """A linear exchange within one process: the rows in another order."""

    order: tuple[int, ...]

    def start(self, *tensors: Tensor) -> Arrived:
        return Arrived(tuple(tensor[list(self.order)] for tensor in tensors))

    def reversed(self) -> Shuffle:
        return Shuffle(tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))


SHUFFLE = Shuffle((2, 0, 3, 1, 5, 4))


def square(x: Tensor) -> Tensor:
    return x * x


def smooth(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x)


def mean_square(x: Tensor) -> Tensor:
    return x.square().mean()


@dataclass
class Toy:
    """Embedding, two exchanges of two tensors each, recomputed segments before and after them,
    one that reads another, what is sent read again later, and two weighted losses."""

    weights: dict[str, Tensor]
    recompute: bool = False
    recomputed: list[Tensor] = field(default_factory=list)

    def forward(self, tape: Tape, x: Tensor, tokens: Tensor) -> Pass[Tensor]:
        w, queue = self.weights, tape.weight_gradients
        embedded = tape.compute(embedding, tokens, w["table"], queue)
        h = tape.compute(torch.add, x, embedded)
        a = tape.compute(smooth, h, recompute=self.recompute)
        b = tape.compute(square, a, recompute=self.recompute)
        y = sent = tape.compute(linear, b, w["first"], queue)
        z = tape.compute(torch.mul, a, y)
        tape.add_loss("middle", tape.compute(mean_square, y))
        self.recomputed += [a, b]
        y, z = yield from tape.exchange("out", SHUFFLE, y, z)
        c = tape.compute(smooth, z, recompute=self.recompute)
        self.recomputed += [c]
        y = tape.compute(linear, c, w["second"], queue)
        (y,) = yield from tape.exchange("back", SHUFFLE.reversed(), y)
        y = tape.compute(torch.add, y, h)
        y = tape.compute(torch.add, y, sent)
        y = tape.compute(linear, y, w["third"], queue)
        tape.add_loss("end", tape.compute(mean_square, y))
        return y

    def plain(self, x: Tensor, tokens: Tensor, grad: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same in plain autograd: the output, and the gradients of x and of each weight."""
        w = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
        x = x.detach().requires_grad_()
        order = torch.tensor(SHUFFLE.order)
        h = x + w["table"][tokens]
        a = torch.nn.functional.silu(h)
        y = (a * a) @ w["first"].T
        middle = y.square().mean()
        shuffled = torch.nn.functional.silu((a * y)[order]) @ w["second"].T
        out = (shuffled[order.argsort()] + h + y) @ w["third"].T
        total = 0.5 * middle + 3.0 * out.square().mean() + (out * grad).sum()
        return out.detach(), list(torch.autograd.grad(total, [x, *w.values()]))


def _toy(recompute: bool = False) -> Toy:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
        for name in NAMES
    }
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    return Toy(weights, recompute)


def _batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input, tokens (some of them twice), and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
    tokens = torch.randint(0, WIDTH, (ROWS,), generator=generator)
    return x, tokens, torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)


def _tape(**options: Any) -> Tape:
    """A tape for a Toy."""
    return Tape(loss_weights={"middle": 0.5, "end": 3.0}, **options)


def _train(toy: Toy, timing: WeightTiming, tape: Tape | None = None) -> list[Tensor]:
    """Forward and backward; the gradients of x and of each weight."""
    tape = tape or _tape()
    x, tokens, grad = _batch(1)
    y = run(toy.forward(tape, x, tokens))
    y.grad = grad
    run(tape.backward(timing))
    tape.drain_weight_gradients()
    return [x.grad, *(weight.grad for weight in toy.weights.values())]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("timing", WeightTiming)
def test_backward_is_that_of_autograd(timing: WeightTiming, recompute: bool) -> None:
    """Guards cuts, exchanges and their reverse, weighted losses, deferred weight gradients and
    recompute, in every combination."""
    _, expected = _toy().plain(*_batch(1))
    for name, ours, theirs in zip(("x", *NAMES), _train(_toy(recompute), timing), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_input_gradient_then_weights_is_the_full_backward() -> None:
    """I then W gives B bit by bit; before W no weight has a gradient, and after it none is left."""
    full = _train(_toy(), WeightTiming.WHILE_IN_FLIGHT)
    toy, tape = _toy(), _tape()
    x, tokens, grad = _batch(1)
    y = run(toy.forward(tape, x, tokens))
    y.grad = grad
    run(tape.backward(WeightTiming.LATER))
    assert torch.equal(x.grad, full[0])
    assert len(tape.weight_gradients) == len(NAMES)
    assert not any(weight.grad.any() for weight in toy.weights.values())
    tape.drain_weight_gradients()
    tape.drain_weight_gradients()
    for weight, expected in zip(toy.weights.values(), full[1:]):
        assert torch.equal(weight.grad, expected)


def test_recompute_frees_the_storage_until_the_backward_and_changes_nothing() -> None:
    """While the exchange is in flight and until the backward the outputs take no memory."""
    kept = _train(_toy(), WeightTiming.LATER)
    toy, tape = _toy(recompute=True), _tape()
    x, tokens, grad = _batch(1)
    forward = toy.forward(tape, x, tokens)
    next(forward)  # the first exchange is in flight
    a, b = toy.recomputed
    assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes() == 0
    next(forward)  # the second one
    with pytest.raises(StopIteration) as end:
        next(forward)
    assert [t.untyped_storage().nbytes() for t in toy.recomputed] == [0, 0, 0]
    y = end.value.value
    y.grad = grad
    run(tape.backward(WeightTiming.LATER))
    assert [t.untyped_storage().nbytes() for t in toy.recomputed] == [ROWS * WIDTH * 8] * 3
    tape.drain_weight_gradients()
    for ours, theirs in zip([x.grad, *(w.grad for w in toy.weights.values())], kept):
        assert torch.equal(ours, theirs)


def test_a_recomputed_output_cannot_be_exchanged() -> None:
    """It is freed while the exchange is in flight; a view of it is no way around."""

    def send(view: bool) -> Pass[None]:
        tape = Tape()
        y = tape.compute(smooth, _batch(1)[0], recompute=True)
        yield from tape.exchange("out", SHUFFLE, tape.compute(Tensor.t, y) if view else y)

    for view in (False, True):
        with pytest.raises(ValueError, match="out: a recomputed output cannot be sent"):
            run(send(view))


def test_a_loss_without_a_weight_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="the loss 'middle' has no weight"):
        run(_toy().forward(Tape(loss_weights={"end": 3.0}), *_batch(1)[:2]))


def test_empty_tensors_can_be_exchanged_beside_recomputed_ones() -> None:
    """A rank whose experts get no token: all empty tensors have the same address, zero."""
    tape = Tape()
    x = torch.zeros(0, WIDTH, requires_grad=True)

    def forward() -> Pass[tuple[Tensor, ...]]:
        y = tape.compute(smooth, x, recompute=True)
        return (yield from tape.exchange("out", Shuffle(()), tape.compute(torch.clone, y)))

    run(forward())
    run(tape.backward(WeightTiming.WHILE_IN_FLIGHT))


def test_weight_gradients_run_when_their_timing_says() -> None:
    """The order of all that a backward does; recomputing needs no gradient, so it hides too."""
    w, out, back = ("weights", "weights"), "out", "back"
    end = [("compute", f) for f in ("mean_square", "linear", "add", "add")]
    middle = [("compute", f) for f in ("linear", "smooth")]
    again = [("recompute", "smooth"), ("recompute", "square")]
    first = [("compute", f) for f in ("mean_square", "mul", "linear", "square", "smooth", "add",
                                      "embedding")]  # fmt: skip
    expected = {
        WeightTiming.WHILE_IN_FLIGHT: [
            *end, ("start", back), w, ("recompute", "smooth"), ("wait", back),
            *middle, ("start", out), w, *again, ("wait", out), *first, w,
        ],
        WeightTiming.AT_ONCE: [
            *end, w, ("start", back), ("wait", back), ("recompute", "smooth"),
            *middle, w, ("start", out), ("wait", out), *again, *first, w,
        ],
        WeightTiming.LATER: [
            *end, ("start", back), ("recompute", "smooth"), ("wait", back),
            *middle, ("start", out), *again, ("wait", out), *first, w,
        ],
    }  # fmt: skip
    for timing, order in expected.items():
        log = EventLog()
        tape = _tape(label="F", recorder=log)
        toy, (x, tokens, grad) = _toy(recompute=True), _batch(1)
        y = run(toy.forward(tape, x, tokens))
        y.grad, tape.label = grad, "B"
        run(tape.backward(timing))
        tape.drain_weight_gradients()
        done = [(e.what, e.name.rsplit(".")[-1]) for e in log.events if e.label == "B"]
        assert done == order, timing


def test_outside_training_nothing_is_kept() -> None:
    toy, tape = _toy(recompute=True), _tape(training=False)
    x, tokens, grad = _batch(1)
    y = run(toy.forward(tape, x, tokens))
    torch.testing.assert_close(y, toy.plain(x, tokens, grad)[0])
    assert not y.requires_grad
    run(tape.backward(WeightTiming.WHILE_IN_FLIGHT))
    assert x.grad is None and not tape.weight_gradients


def test_two_interleaved_passes_share_nothing() -> None:
    """The backward of one micro-batch between the exchanges of another's forward, recomputing."""
    alone = _toy(recompute=True)
    for seed in (1, 2):
        tape, (x, tokens, grad) = _tape(), _batch(seed)
        y = run(alone.forward(tape, x, tokens))
        y.grad = grad
        run(tape.backward(WeightTiming.WHILE_IN_FLIGHT))
        tape.drain_weight_gradients()
    toy = _toy(recompute=True)
    tapes, batches = (_tape(), _tape()), (_batch(1), _batch(2))
    y = run(toy.forward(tapes[0], *batches[0][:2]))
    y.grad = batches[0][2]
    _, y = interleave(
        tapes[0].backward(WeightTiming.WHILE_IN_FLIGHT), toy.forward(tapes[1], *batches[1][:2])
    )
    tapes[0].drain_weight_gradients()
    y.grad = batches[1][2]
    run(tapes[1].backward(WeightTiming.WHILE_IN_FLIGHT))
    tapes[1].drain_weight_gradients()
    for name in NAMES:
        assert torch.equal(toy.weights[name].grad, alone.weights[name].grad), name


def test_interleave_alternates_first_first_and_returns_both_results() -> None:
    def steps(name: str, count: int, log: list[str]) -> Pass[str]:
        for step in range(count):
            log.append(f"{name}{step}")
            yield
        log.append(f"{name} ends")
        return name.upper()

    log: list[str] = []
    assert interleave(steps("a", 1, log), steps("b", 3, log)) == ("A", "B")
    assert log == ["a0", "b0", "a ends", "b1", "b2", "b ends"]


def test_an_exception_closes_the_other_pass() -> None:
    closed: list[str] = []

    def patient() -> Pass[None]:
        try:
            while True:
                yield
        finally:
            closed.append("patient")

    def hasty() -> Pass[None]:
        yield
        raise ZeroDivisionError("hasty")

    for pair in ((patient(), hasty()), (hasty(), patient())):
        with pytest.raises(ZeroDivisionError, match="hasty") as caught:
            interleave(*pair)
        assert caught.traceback[-1].name == "hasty"
    assert closed == ["patient"] * 2


def test_linear_and_embedding_add_into_the_gradient_that_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    table = torch.randn(6, 5, dtype=torch.float64, generator=generator).requires_grad_()
    tokens = torch.tensor([[1, 1, 5], [0, 1, 5]])
    plain = x @ weight.T + table[tokens]
    expected = torch.autograd.grad(plain.pow(3).sum(), [x, weight, table])
    weight.grad, table.grad = torch.ones_like(weight), torch.ones_like(table)
    queue = WeightGradients()
    (linear(x, weight, queue) + embedding(tokens, table, queue)).pow(3).sum().backward()
    assert weight.grad.eq(1).all() and len(queue) == 2
    queue.drain()
    torch.testing.assert_close(x.grad, expected[0])
    torch.testing.assert_close(weight.grad, 1 + expected[1])
    torch.testing.assert_close(table.grad, 1 + expected[2])
