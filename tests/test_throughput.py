"""The throughput command: its accounting on hand-made events, and short real runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.throughput import main
from parallel.schedule.generators.dualpipe import dualpipev
from parallel.study.costs import read_costs
from parallel.study.simulate import simulate
from parallel.study.timeline_file import read_timeline
from parallel.tape.recorder import Event
from tests.commands import TINY as TINY_FILE
from tests.commands import finish, start
from trainer.bench.exchange_times import Window, account, exchanges, hidden_share, mean
from trainer.bench.limited_link import why_not
from trainer.bench.throughput import Measured, Trial, compare

ROOT = Path(__file__).parent.parent
SHORT = ("--steps", "2", "--warmup", "1", "--compare-overlap", "--json")
TINY = """
mesh: {expert: 2}
pipeline: {schedule: dualpipev, micro_batches: 4}
model: {layers: 2, dense_layers: 0, dim: 32}
data: {sequence_length: 16, global_batch: 8}
"""


def _event(label: str, what: Any, name: str, start: float, end: float) -> Event:
    return Event(label, what, name, start, end)


# Two steps, [0, 10) with overlap on and [10, 20) with it off. In a pair a dispatch is hidden but
# for its last half second; a combine is waited for from start to end.
EVENTS = [
    _event("F&", "compute", "attend", 0.0, 1.0),
    _event("F&", "wait", "activation", 1.0, 1.25),
    _event("B&", "weights", "weights", 2.0, 3.5),
    _event("B&", "flight", "combine", 2.0, 2.5),
    _event("F&", "wait", "dispatch", 4.5, 5.0),
    _event("F&", "flight", "dispatch", 1.0, 5.0),
    _event("B&", "wait", "combine", 2.0, 2.5),
    _event("B", "flight", "dispatch", 6.0, 8.0),
    _event("B", "wait", "dispatch", 6.0, 8.0),
    _event("F&", "flight", "dispatch", 11.0, 13.0),
    _event("F&", "wait", "dispatch", 11.0, 13.0),
    _event("F", "flight", "counts", 30.0, 31.0),
    _event("F", "wait", "counts", 30.0, 31.0),
]
WINDOWS = [Window("on", 0.0, 10.0), Window("off", 10.0, 20.0)]


def _own_starts() -> list[float]:
    return [exchange.start for exchange in exchanges(EVENTS)]


def test_accounting_sorts_the_time_of_a_step() -> None:
    on = account(EVENTS, _own_starts(), WINDOWS, "on")
    dispatch = on.all_to_alls["pairs"]["dispatch"]
    assert (dispatch.number, dispatch.in_flight, dispatch.waited) == (1, 4.0, 0.5)
    assert dispatch.hidden == 1 - 0.5 / 4.0
    assert on.all_to_alls["pairs"]["combine"].hidden == 0.0
    assert on.total("pairs").in_flight == 4.5
    assert on.total("lone").waited == 2.0
    assert on.messages == {"activation": 0.25, "gradient": 0.0}
    assert on.computing == 2.5
    assert on.elsewhere == pytest.approx(10 - 2.5 - 0.25 - 3.0)
    assert on.total("lone").number == 1, "what lies outside of all windows was counted"
    assert account(EVENTS, _own_starts(), WINDOWS, "off").total("pairs").waited == 2.0


def test_waiting_for_a_late_peer_is_no_transfer() -> None:
    """The other rank starts the dispatch of the first step at 4.75, while we wait for it."""
    latest = [4.75 if start == 1.0 else start for start in _own_starts()]
    dispatch = account(EVENTS, latest, WINDOWS, "on").all_to_alls["pairs"]["dispatch"]
    assert (dispatch.transfer, dispatch.waited_transfer) == (0.25, 0.25)
    assert dispatch.hidden_transfer == 0.0
    assert dispatch.hidden == 1 - 0.5 / 4.0


def test_flights_and_waits_of_one_sort_pair_up_in_order() -> None:
    """Flights are noted when they end: here the second before the first."""
    events = [
        _event("F&", "flight", "dispatch", 3.0, 4.0),
        _event("F&", "flight", "dispatch", 1.0, 5.0),
        _event("F&", "wait", "dispatch", 4.5, 5.0),
        _event("F&", "wait", "dispatch", 6.0, 6.0),
    ]
    assert [(e.start, e.wait_start) for e in exchanges(events)] == [(1.0, 4.5), (3.0, 6.0)]


def test_means_and_comparison() -> None:
    on = account(EVENTS, _own_starts(), WINDOWS, "on")
    off = account(EVENTS, _own_starts(), WINDOWS, "off")
    assert mean([on, on]) == on
    half = mean([on, off])
    assert half.total("pairs").waited == (1.0 + 2.0) / 2
    measured = {
        "on": Measured([2.0, 1.0, 9.0], 100, 1.0, on, [on]),
        "off": Measured([3.0], 100, 1.0, off, [off]),
    }
    comparison = compare(measured)
    assert comparison is not None
    assert comparison.speed_up == 1.5
    assert comparison.pairs_hidden == 1 - 1.0 / 2.0
    assert comparison.all_hidden == 0.0, "more waited for than without is no negative share"
    assert compare({"on": measured["on"]}) is None
    assert hidden_share(0.0, 0.0) is None


def test_modes_alternate_on_the_same_batches() -> None:
    order = list(Trial(("on", "off"), steps=2, warmup=1).order())
    assert order == [
        (-1, "off"), (-1, "on"), (0, "on"), (0, "off"), (1, "off"), (1, "on"),
    ]  # fmt: skip


def test_why_a_link_cannot_be_limited() -> None:
    everything = {"ip": "/sbin/ip", "tc": "/sbin/tc"}.get
    assert why_not("1gbit", 0, everything) is None
    assert "root" in (why_not("1gbit", 1000, everything) or "")
    assert "program tc" in (why_not("1gbit", 0, {"ip": "/sbin/ip"}.get) or "")
    assert "1gbit" in (why_not("fast", 0, everything) or "")


def _start(tmp_path: Path, *arguments: str, path: str | None = None) -> subprocess.Popen[str]:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, "launch/throughput.py", "--config", str(config), *arguments],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), "PATH": path or os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def _has_space(process: subprocess.Popen[str]) -> bool:
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return f"tandem-{process.pid}" in spaces.split()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--steps", "0"), "--steps must be between 1 and"),
        (("--steps", "1000000000"), "--steps must be between 1 and"),
        (("--warmup", "-1"), "--warmup must be between 0 and"),
        (("--link-rate", "fast"), "a rate is a number"),
        (("--link-rate", "1gbit", "--mesh.expert", "1"), "--link-rate needs several processes"),
        (("--pipeline.micro_batches", "3"), "micro"),
        (("--mesh.expert_data", "100000"), "mesh asks for 200000 processes"),
        (
            ("--save-costs", "a", "--save-timeline", "a"),
            "are the same file",
        ),
        (("--save-costs", "."), "--save-costs . cannot be written: Is a directory"),
        (
            ("--save-timeline", "/dev/null/a/b"),
            "null/a/b cannot be written: Not a directory",
        ),
    ],
)
def test_a_bad_request_is_one_line(
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    # A request that is good after all must not start these tests again, as its ranks.
    monkeypatch.setattr("launch.throughput.run_ranks_here", lambda prog, world: 0)
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    assert main(["--config", str(config), *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == ""


def test_a_result_is_printed_even_if_a_file_cannot_be_written(tmp_path: Path) -> None:
    one = ("--mesh.expert", "1", "--steps", "1", "--warmup", "0", "--json")
    code, out, err = _finish(_start(tmp_path, *one, "--save-costs", "/dev/full"))
    assert code == 1 and "on" in json.loads(out)["modes"]
    assert err == "throughput: /dev/full cannot be written: No space left on device\n"


def test_a_link_that_cannot_be_limited_is_one_line(tmp_path: Path) -> None:
    """Without root, or as here without the programs."""
    code, out, err = _finish(_start(tmp_path, "--link-rate", "1gbit", path="/nowhere"))
    assert (code, out) == (2, "")
    assert "--link-rate needs" in err and err.count("\n") == 1


def _check(report: dict[str, Any]) -> None:
    """Figures that hold together, in a run of 2 ranks with both modes."""
    assert set(report["modes"]) == {"on", "off"}
    assert report["comparison"]["speed_up"] > 0
    for mode in report["modes"].values():
        assert len(mode["step_seconds"]["all"]) == mode["steps"] == 2
        assert mode["tokens_per_second"] > 0 and mode["load_max_over_mean"] >= 1
        assert len(mode["by_rank"]) == 2
        for times in (mode["mean_over_ranks"], *mode["by_rank"]):
            exchanged = times["all_to_all"]
            # 4 micro-batches x 2 layers, forward and backward; counts go forward only.
            assert exchanged["all"]["number"] == pytest.approx(4 * 2 * 5)
            for sort in (exchanged["pairs"], exchanged["lone"]):
                assert sort["number"] > 0
                assert 0 <= sort["hidden"] <= 1 and 0 <= sort["hidden_transfer"] <= 1
                # The end of a flight is noted by another thread, which may come late or early.
                assert sort["waited"] <= sort["in_flight"] + 2e-3 * sort["number"]
                assert sort["transfer"] <= sort["in_flight"] + 1e-9
                assert sort["waited_transfer"] <= sort["waited"] + 1e-9
            assert times["pipeline_messages_waited"] == {"activation": 0, "gradient": 0}


def test_a_run_of_two_processes(tmp_path: Path) -> None:
    code, out, err = _finish(_start(tmp_path, *SHORT))
    assert code == 0, err
    report = json.loads(out)
    _check(report)
    assert report["link_rate"] is None


def test_a_run_on_a_limited_link(tmp_path: Path) -> None:
    if problem := why_not("50mbit", os.geteuid(), shutil.which):
        pytest.skip(problem)
    process = _start(tmp_path, *SHORT, "--link-rate", "50mbit")
    code, out, err = _finish(process)
    if "cannot be set up here" in err:
        pytest.skip(err.strip())
    assert code == 0, err
    report = json.loads(out)
    _check(report)
    assert report["link_rate"] == "50mbit"
    assert not _has_space(process)


def test_a_signal_leaves_no_namespace(tmp_path: Path) -> None:
    if problem := why_not("1mbit", os.geteuid(), shutil.which):
        pytest.skip(problem)
    process = _start(tmp_path, "--steps", "1000", "--link-rate", "1mbit")
    while process.poll() is None and not _has_space(process):
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
    code, _, err = _finish(process)
    if "cannot be set up here" in err:
        pytest.skip(err.strip())
    assert code == 128 + signal.SIGTERM
    assert not _has_space(process)


def test_measured_costs_simulate_the_run_they_were_measured_in(tmp_path: Path) -> None:
    costs, step = tmp_path / "costs.yaml", tmp_path / "step.json"
    mesh = ("--mesh.expert", "1", "--mesh.pipeline", "2", "--model.layers", "4")
    schedule = ("--pipeline.micro_batches", "4", "--pipeline.schedule", "dualpipev")
    code, _, err = finish(
        start(
            tmp_path, "--config", TINY_FILE, *mesh, *schedule, "--steps", "2", "--warmup", "1",
            "--save-costs", str(costs), "--save-timeline", str(step),
            script="launch/throughput.py",
        )
    )  # fmt: skip
    assert code == 0, err
    model, timeline = read_costs(costs), read_timeline(step)
    assert isinstance(model.forward, Sequence) and len(model.forward) == 4
    assert isinstance(model.pair_factor, Sequence) and len(model.pair_factor) == 2
    assert timeline.schedule.programs == dualpipev(2, 4).programs
    assert 0.1 < simulate(timeline.schedule, model).makespan / timeline.makespan < 10
