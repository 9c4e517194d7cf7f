"""The executor beside its simulation, on real processes whose stages sleep.

Speed is measured by launch/truth.py. Here only what holds on a loaded machine: every rank runs its
program in order, nothing computes before its input has been made, weight gradients let the gradient
go first, and the step takes no less than simulated and not absurdly more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from parallel.pipeline.truth.ours import Measured, execute, make_transport
from parallel.pipeline.truth.replay import gradients_first, replay
from parallel.ranks.process import Process
from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.lower import Message, inputs, outputs
from parallel.schedule.table import Action, Schedule
from parallel.study.costs import CostModel
from parallel.study.simulate import simulate
from parallel.study.timeline import Span, Timeline
from tests.commands import ROOT, in_process
from tests.distributed import run_world

RANKS, MICRO_BATCHES = 4, 8
COSTS = CostModel(0.02, 0.02, 0.02, pair_factor=0.85)
DENSE = CostModel(0.02, 0.02, 0.02)
FACTOR, SLACK = 3.0, 1.0  # a loaded machine of two cores: an upper bound of factor x + slack s
SUM_OF_LOSSES = 32 * sum(range(MICRO_BATCHES))  # 32 numbers each


def _schedule(name: str) -> Schedule:
    return generate(name, RANKS, MICRO_BATCHES)


def _run(process: Process) -> tuple[dict[str, Measured], Measured]:
    schedules = {name: _schedule(name) for name in GENERATORS}
    transport = make_transport(list(schedules.values()), process.rank, timedelta(seconds=60))
    runs = {name: execute(schedule, COSTS, transport) for name, schedule in schedules.items()}
    return runs, execute(_schedule("1f1b"), DENSE, transport, exchanges=False)


@pytest.fixture(scope="module")
def runs() -> list[tuple[dict[str, Measured], Measured]]:
    return run_world(RANKS, _run)


def _made(timeline: Timeline) -> dict[Message, Span]:
    schedule = timeline.schedule
    return {m: span for span in timeline.spans for m in outputs(schedule, span.item)}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_measured_step_is_its_table(
    name: str, runs: list[tuple[dict[str, Measured], Measured]]
) -> None:
    run, timeline = runs[0][0][name], runs[0][0][name].timeline
    schedule = _schedule(name)
    simulated = simulate(schedule, COSTS)
    items = tuple(tuple(span.item for span in spans) for spans in timeline.by_rank)
    assert items == schedule.programs
    # Sleeps are never short, so no step is, and no item.
    assert simulated.makespan * 0.999 <= timeline.makespan <= run.wall
    assert run.wall <= FACTOR * simulated.makespan + SLACK
    for measured, cost in zip(timeline.spans, simulated.spans):
        assert measured.end - measured.start >= 0.999 * (cost.end - cost.start)
    made = _made(timeline)
    for span in timeline.spans:
        for message in inputs(schedule, span.item):
            # A pair's start is moved by its waits, so only its end tells.
            at = span.start if isinstance(span.item, Action) else span.end
            assert at > made[message].start
    assert replay(timeline) >= simulated.makespan * 0.999
    assert run.loss == SUM_OF_LOSSES  # every micro-batch came through every stage
    assert all(rank[0][name].wall == run.wall for rank in runs)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_replay_leaves_out_what_messages_took(name: str) -> None:
    with_hops = simulate(_schedule(name), replace(COSTS, hop=0.004))
    without = simulate(_schedule(name), COSTS).makespan
    assert with_hops.makespan > without
    assert replay(with_hops) == pytest.approx(without)


def test_the_input_gradient_leaves_before_weight_gradients_that_hide_nothing(
    runs: list[tuple[dict[str, Measured], Measured]],
) -> None:
    """On stages without collectives a rank starts its backward while the next one still computes
    the weight gradients of the same micro-batch; the step is that of a table that says so."""
    run, schedule = runs[0][1], _schedule("1f1b")
    made = _made(run.timeline)
    early = [
        made[message].end - span.start
        for span in run.timeline.spans
        for message in inputs(schedule, span.item)
        if message.kind == "gradient"
    ]
    assert max(early) > 0.01
    first = simulate(gradients_first(schedule), DENSE).makespan
    assert first < simulate(schedule, DENSE).makespan
    assert run.wall >= 0.999 * first
    assert run.loss == SUM_OF_LOSSES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--schedules none", "nothing to run"),
        ("--schedules dualpip", "no schedule is called 'dualpip'"),
        ("--schedules 1f1b,,zbv", "no schedule is called ''"),
        ("--schedules dualpipe --ranks 3", "dualpipe needs --ranks to be even"),
        ("--schedules gpipe --torch", "--torch compares 1f1b, zbv, dualpipev"),
        ("--schedules none --torch --within 2", "--within has no effect with --schedules none"),
        ("--costs no_such_file.yaml", "no_such_file.yaml: cannot be read (No such"),
        ("--costs no_such_file.yaml --stage 3", "--stage has no effect with --costs"),
        ("--costs c.yaml --pair-factor 1", "--pair-factor has no effect with --costs"),
        ("--stage 0", "--stage: must be a number from 1e-15"),
        ("--stage nan", "must be a number"),
        ("--stage 1e9", "a step of gpipe would take"),
        ("--repeats none", "must be a whole number of 1 or more, not 'none'"),
        ("--repeats 1e9", "must be a whole number"),
        ("--ranks 0", "--ranks: must be a whole number of 1 or more"),
        ("--ranks 1000000", "--ranks: must be a whole number of at most 128"),
        ("--micro-batches 1000000000", "--ranks x --micro-batches must be at most 262144"),
    ],
)
def test_the_command_says_what_it_cannot_run_in_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("truth.py", *arguments.split()) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("truth: ") and printed.err.count("\n") == 1 and not printed.out


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("parallel.pipeline.truth.measure.measure", interrupted)
    assert in_process("truth.py", "--ranks", 2, "--micro-batches", 4) == 130
    assert capsys.readouterr().err == "truth: stopped by Ctrl-C\n"


def test_the_command_measures_and_compares() -> None:
    """One schedule of two ranks, ours and torch's."""
    sizes = ("--ranks", "2", "--micro-batches", "4", "--stage", "20", "--repeats", "1")
    ended = _command("--schedules", "zbv", *sizes, "--torch", "--within", "900", "--json")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    truth, beside = said["truth"]["zbv"], said["torch"]["zbv"]
    assert truth["ratio"] == truth["median_ratio"] == truth["measured"][0] / truth["simulated"]
    assert truth["ratio"] >= 0.999
    for runner in ("torch", "ours", "gradients_first"):
        assert len(beside[runner]) == 1
        assert beside[runner][0] >= 0.999 * beside["simulated_gradients_first"]


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "truth.py"), *arguments],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
