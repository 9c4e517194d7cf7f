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
import torch

from launch.throughput import main
from parallel.expert.router import RouterOptions, expert_load
from parallel.schedule.generators.dualpipe import dualpipev
from parallel.schedule.table import Action, Overlap
from parallel.study.costs import read_costs
from parallel.study.simulate import simulate
from parallel.study.timeline_file import read_timeline
from parallel.tape.recorder import Event
from tests.commands import TINY as TINY_FILE
from tests.commands import finish, start
from trainer.bench.balanced_routing import choose_balanced
from trainer.bench.device_events import DeviceEventLog
from trainer.bench.exchange_times import Window, account, exchanges, hidden_share, mean
from trainer.bench.gaps import Span, gaps_between
from trainer.bench.limited_link import why_not
from trainer.bench.links import Links
from trainer.bench.step_parts import PartsClock, RankStep, mean_step
from trainer.bench.throughput import Measured, Trial, compare
from trainer.config.parse import config_parser, parse
from trainer.config.schema import ClusterConfig
from trainer.dry.device import pretended_gpu
from trainer.dry.rank import dry_step
from trainer.plan.datasheets import machine_of
from trainer.plan.step_time import StepParts
from trainer.plan.traffic import Bytes

ROOT = Path(__file__).parent.parent
ALONE = ("--mesh.pipeline", "1", "--mesh.expert", "1")
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
        "on": Measured([2.0, 1.0, 9.0], 1.0, StepParts(), on, [on]),
        "off": Measured([3.0], 1.0, StepParts(), off, [off]),
    }
    comparison = compare(measured)
    assert comparison is not None
    assert comparison.speed_up == 1.5
    assert comparison.pairs_hidden == 1 - 1.0 / 2.0
    assert comparison.all_hidden == 0.0, "more waited for than without is no negative share"
    assert compare({"on": measured["on"]}) is None
    assert hidden_share(0.0, 0.0) is None


def test_every_moment_of_a_step_belongs_to_one_part() -> None:
    """Marks at 0, 1, 3, ...: whatever comes between two belongs to what began at the first."""
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    clock = PartsClock(lambda: next(times))
    forward, backward = Action("F", 0, 0, 0), Action("B", 0, 0, 0)
    clock.start()  # 0
    clock.note("item 1 of 2")  # 1
    with clock.span("F", "wait", "activation"):  # 3 to 6
        pass
    with clock.span("F", "wait", "dispatch"), clock.span("F", "compute", "dispatch"):
        pass
    clock.item(forward, 0.0, 0.0)
    clock.note("item 2 of 2")  # 10
    clock.item(Overlap(forward, backward), 0.0, 0.0)
    clock.note("sum of the gradients")  # 15
    clock.stop()  # 21
    step = clock.step(started=100.0)
    assert step.items_end == 115.0
    assert step.parts == StepParts(forward=2 + 4, pairs=5, bubble=3, optimizer=1 + 6)


class Sent:
    """A collective that is done at 7.5 by its own stream."""

    def follow(self) -> None:
        raise AssertionError("only the stream for arrivals follows")


def test_events_of_a_stream_are_accounted_like_those_of_the_host() -> None:
    """The stream that computes comes to a dispatch at 1, which is done at 7.5, and stands still for
    it from 6 to 7.5; the host was at 100 when the stream was at 0.5."""
    times = iter([0.5, 1.0, 2.0, 5.0, 6.0, 7.5])
    log = DeviceEventLog(lambda: next(times), lambda pending: 7.5)
    log.start()
    with log.span("B&", "start", "dispatch"):
        pass
    log.flight("B&", "dispatch", 0.0, Sent())
    with log.span("F&", "compute", "attend"):
        pass
    with log.span("B&", "wait", "dispatch"):
        pass
    events = log.events(started=100.0)
    found = account(events, [101.0], [Window("on", 100.0, 110.0)], "on")
    dispatch = found.all_to_alls["pairs"]["dispatch"]
    assert (found.computing, dispatch.in_flight, dispatch.waited) == (3.0, 6.5, 1.5)
    assert dispatch.transfer == 6.0


def test_waiting_for_the_last_rank_is_bubble_where_that_is_known() -> None:
    early = RankStep(StepParts(forward=2.0, optimizer=4.0), items_end=2.0)
    late = RankStep(StepParts(forward=5.0, optimizer=1.0), items_end=5.0)
    together = mean_step([[early], [late]], one_clock=True)
    assert together == StepParts(forward=3.5, bubble=1.5, optimizer=1.0)
    assert mean_step([[early], [late]], one_clock=False) == StepParts(forward=3.5, optimizer=2.5)


@pytest.mark.parametrize(
    "tokens, experts, options",
    [
        (64, 8, RouterOptions(top_k=2)),
        (256, 64, RouterOptions(top_k=6)),
        (128, 256, RouterOptions(top_k=8, groups=8, top_groups=4)),
    ],
)
def test_forced_balance(tokens: int, experts: int, options: RouterOptions) -> None:
    """Every expert gets as many tokens; a token keeps to its groups, and what it is worth to each
    expert still comes from the scores."""
    scores_TE = torch.rand(tokens, experts)
    weights_TK, experts_TK = choose_balanced(scores_TE, torch.zeros(experts), options)
    assert set(expert_load(experts_TK, experts).tolist()) == {tokens * options.top_k / experts}
    groups_TK = experts_TK // (experts // options.groups)
    for chosen, groups in zip(experts_TK.tolist(), groups_TK.tolist()):
        assert len(set(chosen)) == options.top_k and len(set(groups)) <= options.top_groups
    expected_TK = scores_TE.gather(1, experts_TK)
    torch.testing.assert_close(weights_TK, expected_TK / expected_TK.sum(1, keepdim=True))


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
        (("--trace", "/dev/null/a/b.json"), "a/b.rank0.json cannot be written: Not a directory"),
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


def _check_rates(report: dict[str, Any], rates: dict[str, Any], seconds: float) -> None:
    per_second = 8 * 16 / seconds
    assert rates["tokens_per_second"] == pytest.approx(per_second)
    assert rates["tokens_per_second_per_rank"] == pytest.approx(per_second / 2)
    assert rates["mfu"]["causal"] < rates["mfu"]["non_causal"]
    for convention, share in rates["mfu"].items():
        tflops = rates["tflops_per_rank"][convention]
        assert share * report["peak"]["tflops_per_rank"] == pytest.approx(tflops)


def _check(report: dict[str, Any]) -> None:
    """Figures that hold together, in a run of 2 ranks with both modes."""
    assert set(report["modes"]) == {"on", "off"}
    assert report["comparison"]["speed_up"] > 0
    assert report["mfu"] == report["modes"]["on"]["mfu"]
    assert len(report["memory"]["peak_gib_by_rank"]) == 2
    predicted = report["predicted"]
    _check_rates(report, predicted, predicted["step_seconds"])
    assert sum(predicted["parts_seconds"].values()) == pytest.approx(predicted["step_seconds"])
    for mode in report["modes"].values():
        _check_rates(report, mode, mode["step_seconds"]["median"])
        parts, longest = mode["parts_seconds"], mode["step_seconds"]["all"]
        assert set(parts) == set(predicted["parts_seconds"])
        assert 0.5 * sum(longest) / 2 < sum(parts.values()) <= sum(longest) / 2 + 1e-3
        assert min(parts["pairs"], parts["forward"], parts["optimizer"]) > 0
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
    code, out, err = _finish(_start(tmp_path, *SHORT, "--balanced-routing", "--plan-memory"))
    assert code == 0, err
    report = json.loads(out)
    _check(report)
    (planned,) = report["memory"]["planned_gib_by_pipeline_rank"]
    assert 0 < planned < report["memory"]["peak_gib_by_rank"][0]
    assert report["link_rate"] is None
    assert report["data"]["routing"] == "forced to balance"
    assert {mode["load_max_over_mean"] for mode in report["modes"].values()} == {1.0}


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


def test_files_of_a_run(tmp_path: Path) -> None:
    """Measured costs simulate the run they were measured in, and the trace of each rank has the
    items of the table as ranges, in order."""
    costs, step = tmp_path / "costs.yaml", tmp_path / "step.json"
    mesh = ("--mesh.expert", "1", "--mesh.pipeline", "2", "--model.layers", "4")
    schedule = ("--pipeline.micro_batches", "4", "--pipeline.schedule", "dualpipev")
    code, _, err = finish(
        start(
            tmp_path, "--config", TINY_FILE, *mesh, *schedule, "--steps", "2", "--warmup", "1",
            "--save-costs", str(costs), "--save-timeline", str(step),
            "--trace", str(tmp_path / "trace.json"),
            script="launch/throughput.py",
        )
    )  # fmt: skip
    assert (code, err) == (0, "")
    model, timeline = read_costs(costs), read_timeline(step)
    assert isinstance(model.forward, Sequence) and len(model.forward) == 4
    assert isinstance(model.pair_factor, Sequence) and len(model.pair_factor) == 2
    assert timeline.schedule.programs == dualpipev(2, 4).programs
    assert 0.1 < simulate(timeline.schedule, model).makespan / timeline.makespan < 10
    for rank, program in enumerate(timeline.schedule.programs):
        events = json.loads((tmp_path / f"trace.rank{rank}.json").read_text())["traceEvents"]
        names = [(e["ts"], e["name"]) for e in events if e.get("cat") == "user_annotation"]
        items = [name.partition(": ")[2] for _, name in sorted(names) if name.startswith("item ")]
        assert items == [str(item) for item in program]
        assert "F&: wait activation" in {name for _, name in names}


def test_one_rank_alone_runs_its_program_with_the_waits_of_a_link(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As many all-to-alls as a dry run of that rank counts, hidden in part on a slow link."""
    options = ("--config", "configs/cpu_4proc.yaml", "--emulate-rank", "1", "--json")
    short = ("--steps", "1", "--warmup", "1", "--link-rate", "1gbit")
    assert main([*options, *short]) == 0
    found = json.loads(capsys.readouterr().out)
    config = parse(config_parser("throughput", "", ""), options[:2])[0]
    calls = [c for c in dry_step(config, 1, pretended_gpu()).calls if c.kind == "all-to-all"]
    # Gradients of routing weights are a message of their own, of the exchange of tokens' gradients.
    beside = [c for c in calls if (c.dtype, c.elements) == ("float32", config.model.moe.top_k)]
    assert found["all_to_alls"]["number"] == len(calls) - len(beside) > 0
    assert 0 < found["all_to_alls"]["waited"] < found["all_to_alls"]["in_flight"]
    assert found["memory_gib"]["planned"] < found["memory_gib"]["peak"]
    lengths = [gap["milliseconds"] for gap in found["largest_gaps"]]
    assert len(lengths) == 10 and lengths == sorted(lengths, reverse=True)


def test_a_rank_for_which_there_is_no_room_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--config", "configs/cpu_4proc.yaml", "--emulate-rank", "1", "--json")
    assert main([*options, "--model.moe.expert_dim", "1000000"]) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert "counted, not run" in out.err
    assert found["launches"] > 1000 and found["host_waits"] and found["collectives"]


def test_gaps_are_between_what_computes() -> None:
    """Named by the innermost two ranges in which they begin."""
    work = [Span(0, 10, "a"), Span(5, 8, "inside a"), Span(12, 15, "b"), Span(20, 21, "c")]
    ranges = [Span(0, 100, "step"), Span(9, 14, "item 1"), Span(9.5, 13, "F"), Span(14, 30, "W")]
    found = [(gap.milliseconds, gap.during, gap.after) for gap in gaps_between(work, ranges)]
    assert found == [(0.005, "step / W", "b"), (0.002, "item 1 / F", "a")]


def test_links_are_those_of_the_plan() -> None:
    machine = machine_of(ClusterConfig(gpu="h800"))
    links, ranks, sent = Links(machine, None), range(6, 10), [1e9, 0.0, 2e9, 3e9]
    wanted = Bytes(network=5e9, nvlink=1e9).seconds(machine)
    assert links.seconds(7, ranks, sent) == pytest.approx(wanted)
    assert Links(machine, 1e9).seconds(7, ranks, sent) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--emulate-rank", "4"), "the config has 4 ranks, numbered from 0"),
        (("--emulate-rank", "0", "--compare-overlap"), "leave out --compare-overlap"),
        (("--emulate-rank", "0", "--pipeline.schedule", "1f1b", *ALONE), "nothing to emul"),
    ],
)
def test_what_cannot_be_emulated_is_refused(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", "configs/cpu_4proc.yaml", *options]) == 2
    assert words in capsys.readouterr().err
