"""An overlapped pair on two gloo ranks: what runs while which all-to-all is in flight, that it
changes no number, and that an exception in it ends both ranks.

The order is that of DeepSeek's published training trace, (collective || compute): combine(B) ||
attention(F); dispatch(F) || experts(B); dispatch(B) || experts(W) + experts(F); combine(F) ||
attention(B) + attention(W).
"""

from __future__ import annotations

import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.pipeline.executor import Executor, StepResult
from parallel.ranks.process import Process
from parallel.schedule.lower import lower
from parallel.schedule.table import Action, Overlap, Schedule
from parallel.tape.passes import run
from parallel.tape.recorder import Event, EventLog, is_paired
from parallel.tape.tape import Tape
from tests.distributed import _CONTEXT, _run_rank, run_world
from trainer.build.layout import Layout, build
from trainer.config.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    PipelineConfig,
    PrecisionConfig,
    RecomputeConfig,
)
from trainer.model.stage import MicroBatch, ModelStage
from trainer.objective.pretraining import TOKENS
from trainer.recipe.progress import Progress
from trainer.recipe.recipe import Recipe

LAYERS, MTP = 2, 1
MOE_LAYERS = LAYERS + MTP
# The whole model as one stage of one pipeline rank: F0, then F1 beside B0, then B1 alone.
PAIR = Schedule(
    "pair", 1, 2, {(0, 0): 0},
    ((
        Action("F", 0, 0, 0),
        Overlap(Action("F", 0, 0, 1), Action("B", 0, 0, 0)),
        Action("B", 0, 0, 1),
    ),),
)  # fmt: skip


def _layout(process: Process, recompute: bool) -> Layout:
    config = Config(
        precision=PrecisionConfig("float64"),
        mesh=MeshConfig(expert=2),
        pipeline=PipelineConfig("1f1b", micro_batches=2),
        recompute=RecomputeConfig(*(recompute,) * 3),
        model=ModelConfig(
            layers=LAYERS,
            dense_layers=0,
            dim=16,
            init_std=0.2,
            attention=AttentionConfig(2, 12, 8, 6, 4, 6),
            moe=MoEConfig(experts=8, top_k=3, expert_dim=8),
            mtp=MTPConfig(MTP),
        ),
        data=DataConfig(sequence_length=6, global_batch=8),
    )
    return build(config, process, torch.device("cpu"))


def _executor(layout: Layout, overlap: bool, log: EventLog | None = None) -> Executor:
    stages = {(0, 0): ModelStage(0, layout.part, layout.partition, layout.objective)}
    program = lower(PAIR).programs[0]
    return Executor(PAIR, program, stages, None, overlap, log or EventLog())


def _micro_batch(process: Process, n: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(10 * n + process.rank)
    return {TOKENS: torch.randint(0, 257, (2, 7 + MTP), generator=generator)}


def _run_pair(process: Process, layout: Layout, executor: Executor) -> StepResult:
    layout.gradients.zero()
    weights = layout.loss_weights(Recipe(layout.config).at(Progress()))
    return executor.run(lambda _, n: _micro_batch(process, n), weights)


def _record(process: Process, overlap: bool, recompute: bool) -> list[Event]:
    log, layout = EventLog(), _layout(process, recompute)
    _run_pair(process, layout, _executor(layout, overlap, log))
    # A flight is noted by another thread, perhaps a moment after the wait for it is over.
    deadline = time.monotonic() + 10
    while _count(log, "flight") < _count(log, "start") and time.monotonic() < deadline:
        time.sleep(0.01)
    return log.events


def _count(log: EventLog, what: str) -> int:
    return sum(event.what == what for event in log.events)


@pytest.fixture(scope="module", params=[False, True], ids=["kept", "recomputed"])
def recorded(request: pytest.FixtureRequest) -> dict[bool, list[list[Event]]]:
    """Events by overlap off or on, then by rank."""
    return {on: run_world(2, _record, on, request.param) for on in (False, True)}


def _select(events: list[Event], label: str, what: str, name: str | None = None) -> list[Event]:
    """Events in order; all names if none is given."""
    return [e for e in events if e.label == label and e.what == what and name in (None, e.name)]


def _flights(events: list[Event], label: str, name: str) -> list[tuple[float, float]]:
    """For each collective of that name, the end of its start and the start of its wait."""
    starts = _select(events, label, "start", name)
    waits = _select(events, label, "wait", name)
    assert len(starts) == len(waits) == MOE_LAYERS
    return [(start.end, end.start) for start, end in zip(starts, waits)]


def _inside(event: Event, flight: tuple[float, float]) -> bool:
    return flight[0] <= event.start and event.end <= flight[1]


def _parts(events: list[Event], label: str) -> dict[str, list[Event]]:
    """Attention, the shared expert and the experts, by MoE layer in the order in which they ran:
    what follows the combine of the layer before, or the start; what flies beside the counts, which
    in a backward is one with attention; and what follows the dispatch."""
    computed = [e for e in _select(events, label, "compute") if e.name != "after counts"]
    shared, experts = (
        [event for event in computed if event.name == name]
        for name in ("beside counts", "after dispatch")
    )
    others = [event for event in computed if event not in shared + experts]
    assert len(experts) == MOE_LAYERS and len(others) == MOE_LAYERS + 1  # and the end
    assert len(shared) == (MOE_LAYERS if "F" in label else 0)
    attention = others[:-1] if "F" in label else others[1:]
    return {"attention": attention, "shared": shared, "experts": experts}


def test_each_collective_of_a_pair_flies_while_the_other_pass_computes(
    recorded: dict[bool, list[list[Event]]],
) -> None:
    """The whole order, for every MoE layer of the forward and of the backward, on both ranks."""
    for events in recorded[True]:
        forward, backward = _parts(events, "F&"), _parts(events, "B&")
        weights = _select(events, "B&", "weights")
        # The head's, then each layer's experts', and the rest while the next collective flies.
        # Those of the first attention run inside its backward: nothing is left to hide.
        assert len(weights) == 2 * MOE_LAYERS
        flights = {
            (name, label): _flights(events, label, name)
            for name in ("dispatch", "combine")
            for label in ("F&", "B&")
        } | {("counts", "F&"): _flights(events, "F&", "counts")}
        for i in range(MOE_LAYERS):
            expected = {
                ("combine", "B&"): [forward["attention"][i], weights[2 * i], forward["shared"][i]],
                ("counts", "F&"): [weights[2 * i], forward["shared"][i]],
                ("dispatch", "F&"): [backward["experts"][i]],
                ("dispatch", "B&"): [weights[1 + 2 * i], forward["experts"][i]],
                ("combine", "F&"): [backward["attention"][i]],
            }
            for collective, computed in expected.items():
                for event in computed:
                    assert _inside(event, flights[collective][i]), (i, collective, event)


def test_a_lone_backward_hides_its_collectives_behind_its_weight_gradients(
    recorded: dict[bool, list[list[Event]]],
) -> None:
    for events in recorded[True]:
        weights = _select(events, "B", "weights")
        assert len(weights) == 2 * MOE_LAYERS
        flights = zip(_flights(events, "B", "combine"), _flights(events, "B", "dispatch"))
        in_order = [flight for layer in flights for flight in layer]
        assert all(_inside(event, flight) for event, flight in zip(weights, in_order))


def test_with_overlap_off_nothing_computes_while_a_collective_flies(
    recorded: dict[bool, list[list[Event]]],
) -> None:
    """What the measurement of the overlap compares with. Only the exchange of counts, a few
    numbers early, flies while the shared experts compute."""
    for events in recorded[False]:
        here = [e for e in events if e.what != "flight" and e.name != "counts"]
        starts = [i for i, event in enumerate(here) if event.what == "start"]
        assert len(starts) == 2 * 4 * MOE_LAYERS  # two micro-batches, two collectives, both ways
        for i in starts:
            assert (here[i + 1].what, here[i + 1].name) == ("wait", here[i].name)
            assert here[i + 1].label == here[i].label
        # A pair is its backward, then its forward.
        labels = [e.label for e in here if is_paired(e.label)]
        assert labels == sorted(labels)


def test_events_say_when_each_collective_was_done(
    recorded: dict[bool, list[list[Event]]],
) -> None:
    for events in recorded[True]:
        flights = [event for event in events if event.what == "flight"]
        starts = [event for event in events if event.what == "start"]
        assert len(flights) == len(starts)
        assert all(flight.end > flight.start for flight in flights)


def _compare_overlap(process: Process) -> dict[str, bool]:
    """Whether routing differs between the micro-batches, and whether overlap changes a number."""
    layout = _layout(process, recompute=True)
    stage = ModelStage(0, layout.part, layout.partition, layout.objective)
    loads = []
    for n in range(2):
        tape = Tape(training=False)
        run(stage.forward(tape, None, _micro_batch(process, n)))
        loads.append(tape.tallies)
    results = []
    for overlap in (False, True):
        result = _run_pair(process, layout, _executor(layout, overlap))
        gradients = {name: p.grad.clone() for name, p in layout.part.named_parameters()}
        results.append((result, gradients))
    (one, one_gradients), (both, both_gradients) = results
    same = {name: torch.equal(g, both_gradients[name]) for name, g in one_gradients.items()}
    same |= {name: torch.equal(value, both.losses[name]) for name, value in one.losses.items()}
    same |= {f"load {name}": torch.equal(v, both.tallies[name]) for name, v in one.tallies.items()}
    same |= {f"gradient {name} there": bool(g.any()) for name, g in one_gradients.items()}
    return same | {
        f"load {n} differs": not torch.equal(v, loads[1][n]) for n, v in loads[0].items()
    }


def test_interleaving_changes_no_bit() -> None:
    """Two micro-batches with different routing give together what one after the other gives."""
    for answers in run_world(2, _compare_overlap):
        assert len(answers) > 100
        assert [what for what, yes in answers.items() if not yes] == []


class _Bomb(torch.autograd.Function):
    """Goes off in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ArithmeticError("the bomb of the test")


def _explode(process: Process, where: str) -> None:
    """The pair, with an exception on rank 0 in the experts of layer 1, where they run beside the
    other pass: in F1's forward, or in B0's backward."""
    layout = _layout(process, recompute=False)
    experts = layout.part.layers["1"].mlp.experts
    forward, calls = experts.forward, []

    def raising_layer(*arguments: Any) -> Tensor:
        calls.append(None)
        if where == "forward" and len(calls) == 2:
            raise ArithmeticError("the bomb of the test")
        y = forward(*arguments)
        return _Bomb.apply(y) if where == "backward" else y

    if process.rank == 0:
        experts.forward = raising_layer
    _run_pair(process, layout, _executor(layout, overlap=True))


@pytest.mark.parametrize(
    ("where", "frame"), [("forward", "in raising_layer"), ("backward", "in backward")]
)
def test_an_exception_in_a_pair_ends_both_ranks_with_its_traceback(
    where: str, frame: str, tmp_path: Path
) -> None:
    """The rank that raised tells where; the other, in the middle of an all-to-all with it, gets an
    error at once. Neither waits for the timeout."""
    children, pipes = [], []
    for rank in range(2):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        arguments = (theirs, f"file://{tmp_path / 'store'}", Process(rank, 2, rank, 2), 60.0)
        child = _CONTEXT.Process(target=_run_rank, args=(*arguments, _explode, (where,)))
        child.start()
        theirs.close()
        children.append(child)
        pipes.append(ours)
    try:
        assert wait(pipes, timeout=60), "no rank failed"
        start = time.monotonic()
        tracebacks = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(10), f"rank {rank} hangs"
            ok, said = pipe.recv()
            assert not ok
            tracebacks.append(said)
        for rank, child in enumerate(children):
            child.join(10)
            assert child.exitcode is not None, f"rank {rank} does not end"
        assert time.monotonic() - start < 10
    finally:
        for child in children:
            child.kill()
            child.join()
    assert "ArithmeticError: the bomb of the test" in tracebacks[0]
    assert frame in tracebacks[0] and "in interleave" in tracebacks[0]
    assert "ArithmeticError" not in tracebacks[1]
    assert "in wait" in tracebacks[1] or "in start" in tracebacks[1]
