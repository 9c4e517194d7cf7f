"""The tape on a toy: its backward is autograd's, whatever is cut, delayed, sent or recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from parallel.ops.embedding import embedding
from parallel.ops.linear import linear
from parallel.tape.passes import Pass, interleave, run
from parallel.tape.recorder import EventLog
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, WeightTiming

WIDTH, ROWS = 5, 6
NAMES = ("table", "first", "second", "third")


@dataclass(frozen=True)
class Arrived:
    tensors: tuple[Tensor, ...]

    def wait(self) -> None:
        return None

    def results(self) -> tuple[Tensor, ...]:
        return self.tensors


@dataclass(frozen=True)
class Shuffle:
    """A linear exchange within one process: the rows in another order."""

    order: tuple[int, ...]
    copies = True

    def start(self, *tensors: Tensor) -> Arrived:
        return Arrived(tuple(tensor[list(self.order)] for tensor in tensors))

    def reversed(self) -> Shuffle:
        return Shuffle(tuple(sorted(range(len(self.order)), key=self.order.__getitem__)))


class Reads(Shuffle):
    """One that reads what it was given until the wait."""

    copies = False


SHUFFLE = Shuffle((2, 0, 3, 1, 5, 4))


def square(x: Tensor) -> Tensor:
    return x * x


def test_a_weight_gradient_that_waits_keeps_no_graph() -> None:
    """It would keep the gradients that the backward has left there."""
    sent_back: list[StorageWeakRef] = []

    class Watched(Shuffle):
        def start(self, *tensors: Tensor) -> Arrived:
            sent_back[:] = [StorageWeakRef(each.untyped_storage()) for each in tensors]
            return super().start(*tensors)

        def reversed(self) -> Shuffle:
            return self

    weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))
    weight.grad = torch.zeros(WIDTH, WIDTH)

    def forward(tape: Tape, x: Tensor) -> Pass[Tensor]:
        (y,) = yield from tape.exchange("out", Watched((1, 0, 3, 2, 5, 4)), x)
        return linear(2 * y, weight, tape.deferred)

    tape, (x, _, grad) = Tape(), _batch(1)
    tape.end(run(forward(tape, tape.begin(x))))
    run(tape.backward(WeightTiming.LATER, grad))
    assert len(tape.weight_gradients) == 1 and sent_back[0].expired()


def smooth(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x)


@dataclass
class Toy:
    """Embedding, two exchanges of two tensors each, recomputed functions before and after them,
    one that reads another, what is sent read again later, and two weighted losses."""

    weights: dict[str, Tensor]
    recompute: bool = False
    recomputed: list[Tensor] = field(default_factory=list)

    def forward(self, tape: Tape, x: Tensor, tokens: Tensor) -> Pass[Tensor]:
        w, queue = self.weights, tape.deferred
        h = x + embedding(tokens, w["table"], queue)
        a = tape.compute(smooth, h, recompute=self.recompute)
        b = tape.compute(square, a, recompute=self.recompute)
        y = linear(b, w["first"], queue)
        z = a * y
        tape.add_loss("middle", y.square().mean())
        self.recomputed += [a, b]
        y, z, h, sent = yield from tape.exchange("out", SHUFFLE, y, z, across=(h, y))
        c = tape.compute(smooth, z, recompute=self.recompute)
        self.recomputed += [c]
        y = tape.release(linear(c, w["second"], queue))
        y, h, sent = yield from tape.exchange("back", SHUFFLE.reversed(), y, across=(h, sent))
        y = linear(y + h + sent, w["third"], queue)
        tape.add_loss("end", y.square().mean())
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
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)
    tokens = torch.randint(0, WIDTH, (ROWS,), generator=generator)
    return x, tokens, torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)


def _tape(**options: Any) -> Tape:
    """A tape for a Toy."""
    return Tape(loss_weights={"middle": 0.5, "end": 3.0}, **options)


def _forward(toy: Toy, tape: Tape, x: Tensor, tokens: Tensor) -> Pass[Tensor]:
    return tape.end((yield from toy.forward(tape, tape.begin(x), tokens)))


def _backward(tape: Tape, timing: WeightTiming, grad: Tensor) -> Tensor:
    """The gradient of x, with all weight gradients done."""
    x_grad = run(tape.backward(timing, grad))
    tape.drain_weight_gradients()
    return x_grad


def _train(toy: Toy, timing: WeightTiming, tape: Tape | None = None) -> list[Tensor]:
    """Forward and backward; the gradients of x and of each weight."""
    tape = tape or _tape()
    x, tokens, grad = _batch(1)
    run(_forward(toy, tape, x, tokens))
    return [_backward(tape, timing, grad), *(weight.grad for weight in toy.weights.values())]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("timing", WeightTiming)
def test_backward_is_that_of_autograd(timing: WeightTiming, recompute: bool) -> None:
    """Guards regions, exchanges and their reverse, weighted losses, deferred weight gradients and
    recompute, in every combination."""
    _, expected = _toy().plain(*_batch(1))
    for name, ours, theirs in zip(("x", *NAMES), _train(_toy(recompute), timing), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_input_gradient_then_weights_is_the_full_backward() -> None:
    """I then W gives B bit by bit; before W no weight has a gradient, and after it none is left."""
    full = _train(_toy(), WeightTiming.WHILE_IN_FLIGHT)
    toy, tape = _toy(), _tape()
    x, tokens, grad = _batch(1)
    run(_forward(toy, tape, x, tokens))
    assert torch.equal(run(tape.backward(WeightTiming.LATER, grad)), full[0])
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
    forward = _forward(toy, tape, x, tokens)
    next(forward)  # the first exchange is in flight
    a, b = toy.recomputed
    assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes() == 0
    next(forward)  # the second one
    with pytest.raises(StopIteration):
        next(forward)
    assert [t.untyped_storage().nbytes() for t in toy.recomputed] == [0, 0, 0]
    x_grad = run(tape.backward(WeightTiming.LATER, grad))
    assert [t.untyped_storage().nbytes() for t in toy.recomputed] == [ROWS * WIDTH * 8] * 3
    tape.drain_weight_gradients()
    for ours, theirs in zip([x_grad, *(w.grad for w in toy.weights.values())], kept):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("copies", [True, False])
def test_what_a_collective_has_copied_is_freed_and_computed_again(copies: bool) -> None:
    """An exchange frees what was recomputed before it, but for what the collective still reads."""
    sent: list[Tensor] = []
    exchange = Shuffle(SHUFFLE.order) if copies else Reads(SHUFFLE.order)

    def forward(tape: Tape, x: Tensor) -> Pass[Tensor]:
        y = tape.compute(square, x, recompute=True)
        sent.append(y)
        (y,) = yield from tape.exchange("out", exchange, y)
        return y

    tape, x = Tape(), _batch(1)[0]
    tape.end(run(forward(tape, tape.begin(x))))
    assert (sent[0].untyped_storage().nbytes() == 0) == copies
    gradient = run(tape.backward(WeightTiming.AT_ONCE, torch.ones_like(x)))
    torch.testing.assert_close(gradient, 2 * x)


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_offloaded_dies_and_comes_back_equal(offload: bool) -> None:
    """While the reverse of the exchange after it is in flight, and once."""
    saved: list[StorageWeakRef] = []

    def cubed(x: Tensor) -> Tensor:
        y = x * x
        saved.append(StorageWeakRef(y.untyped_storage()))
        return y * x

    def forward(tape: Tape, x: Tensor) -> Pass[Tensor]:
        with tape.offload(offload):
            y = tape.compute(cubed, x)
        (y,) = yield from tape.exchange("out", SHUFFLE, y)
        return y

    tape, (x, _, grad) = Tape(), _batch(1)
    tape.end(run(forward(tape, tape.begin(x))))
    assert saved[0].expired() == offload
    gradient = run(tape.backward(WeightTiming.AT_ONCE, grad))
    expected = 3 * x * x * SHUFFLE.reversed().start(grad).results()[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


def test_values_that_no_backward_reads_die() -> None:
    """Of a sum sent out and back and added again, nothing is left; of a square its input."""
    alive: list[StorageWeakRef] = []

    def watched(x: Tensor) -> Tensor:
        alive.append(StorageWeakRef(x.untyped_storage()))
        return x

    def forward(tape: Tape, x: Tensor) -> Pass[Tensor]:
        y, x = yield from tape.exchange("out", SHUFFLE, watched(x + 1), across=(watched(x + 2),))
        z = watched(watched(y) + watched(x))
        return watched(z * z)

    tape = Tape()
    tape.end(run(forward(tape, tape.begin(_batch(1)[0]))))
    assert [not ref.expired() for ref in alive] == [False] * 4 + [True, False]
    run(tape.backward(WeightTiming.LATER, _batch(1)[2]))
    assert all(ref.expired() for ref in alive)


def test_a_value_that_goes_around_an_exchange_is_refused_by_its_place() -> None:
    """A residual that a layer forgets to send `across` would be differentiated too early."""

    def forward(tape: Tape, x: Tensor) -> Pass[Tensor]:
        h = x * x
        (y,) = yield from tape.exchange("out", SHUFFLE, h)
        return y + h

    tape = Tape(layer="layer 3")
    tape.end(run(forward(tape, tape.begin(_batch(1)[0]))))
    with pytest.raises(RuntimeError, match=r"layer 3: a value computed from the start .* `across`"):
        run(tape.backward(WeightTiming.LATER, _batch(1)[2]))


def test_what_is_recomputed_may_be_sent_and_may_recompute_in_turn() -> None:
    """A whole layer: its function, an output of which is exchanged, has recomputed parts."""

    def part(tape: Tape, x: Tensor) -> tuple[Tensor, Tensor]:
        return square(tape.compute(smooth, x, recompute=True)), x.sin()

    def forward(tape: Tape, x: Tensor, recompute: bool) -> Pass[Tensor]:
        y, z = tape.compute(part, tape, x, recompute=recompute)
        y, x = yield from tape.exchange("out", SHUFFLE, y.t().t(), across=(z,))
        y, w = tape.compute(part, tape, y + x, recompute=recompute)
        return tape.release(y * w)

    results = []
    x, _, grad = _batch(1)
    for recompute in (False, True):
        tape = Tape()
        y = tape.end(run(forward(tape, tape.begin(x), recompute)))
        results.append((y, run(tape.backward(WeightTiming.LATER, grad))))
    for kept, recomputed in zip(*results):
        assert torch.equal(kept, recomputed)


def test_a_loss_without_a_weight_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="the loss 'middle' has no weight"):
        run(_forward(_toy(), Tape(loss_weights={"end": 3.0}), *_batch(1)[:2]))


def test_empty_tensors_can_be_exchanged_beside_recomputed_ones() -> None:
    """A rank whose experts get no token: all empty tensors have the same address, zero."""
    tape = Tape()

    def forward(x: Tensor) -> Pass[tuple[Tensor, ...]]:
        y = tape.compute(smooth, x, recompute=True)
        return (yield from tape.exchange("out", Shuffle(()), torch.clone(y)))

    (y,) = run(forward(tape.begin(torch.zeros(0, WIDTH))))
    tape.end(y)
    x_grad = run(tape.backward(WeightTiming.WHILE_IN_FLIGHT, torch.zeros_like(y)))
    assert x_grad.shape == (0, WIDTH)


def test_weight_gradients_run_when_their_timing_says() -> None:
    """The order of all that a backward does; recomputing needs no gradient, so it hides too."""
    w, out, back = ("weights", "weights"), "out", "back"
    end, middle, first = (
        ("compute", name) for name in ("after back", "after out", "from the start")
    )
    again = ("recompute", "from the start")
    expected = {
        WeightTiming.WHILE_IN_FLIGHT: [
            end, ("start", back), w, ("wait", back), middle,
            ("start", out), w, again, ("wait", out), first, w,
        ],
        WeightTiming.AT_ONCE: [
            end, ("start", back), ("wait", back), middle,
            ("start", out), ("wait", out), again, first, w,
        ],
        WeightTiming.LATER: [
            end, ("start", back), ("wait", back), middle,
            ("start", out), again, ("wait", out), first, w,
        ],
    }  # fmt: skip
    for timing, order in expected.items():
        log = EventLog()
        tape = _tape(label="F", recorder=log)
        x, tokens, grad = _batch(1)
        run(_forward(_toy(recompute=True), tape, x, tokens))
        tape.label = "B"
        _backward(tape, timing, grad)
        assert [(e.what, e.name) for e in log.events if e.label == "B"] == order, timing


def test_weight_gradients_that_nothing_waits_for_run_at_once() -> None:
    """The first stage hands no gradient on: its products leave nothing in the queue."""
    toy, tape = _toy(), _tape()
    x, tokens, grad = _batch(1)
    tape.begin()
    tape.end(run(toy.forward(tape, x, tokens)))
    assert run(tape.backward(WeightTiming.WHILE_IN_FLIGHT, grad)) is None
    assert not len(tape.weight_gradients)
    for weight, expected in zip(toy.weights.values(), _toy().plain(x, tokens, grad)[1][1:]):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_outside_training_nothing_is_kept() -> None:
    toy, tape = _toy(recompute=True), _tape(training=False)
    x, tokens, grad = _batch(1)
    with torch.no_grad():
        y = run(_forward(toy, tape, x, tokens))
    torch.testing.assert_close(y, toy.plain(x, tokens, grad)[0])
    assert run(tape.backward(WeightTiming.WHILE_IN_FLIGHT)) is None
    assert not tape.weight_gradients


def test_two_interleaved_passes_share_nothing() -> None:
    """The backward of one micro-batch between the exchanges of another's forward, recomputing."""
    timing, (x, tokens, grad) = WeightTiming.WHILE_IN_FLIGHT, _batch(1)
    alone = _toy(recompute=True)
    for seed in (1, 2):
        tape, (x, tokens, grad) = _tape(), _batch(seed)
        run(_forward(alone, tape, x, tokens))
        _backward(tape, timing, grad)
    toy = _toy(recompute=True)
    tapes, batches = (_tape(), _tape()), (_batch(1), _batch(2))
    run(_forward(toy, tapes[0], *batches[0][:2]))
    interleave(tapes[0].backward(timing, batches[0][2]), _forward(toy, tapes[1], *batches[1][:2]))
    tapes[0].drain_weight_gradients()
    _backward(tapes[1], timing, batches[1][2])
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
