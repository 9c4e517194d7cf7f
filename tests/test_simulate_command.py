"""The simulate command and its files: tables, timelines, costs; what it prints and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from parallel.schedule.generators import GENERATORS, generate
from parallel.schedule.table import Schedule, ScheduleError
from parallel.schedule.table_file import read_table, write_table
from parallel.study.costs import CostModel, write_costs
from parallel.study.simulate import simulate
from parallel.study.timeline_file import read_timeline, write_timeline
from parallel.study.timeline_table import critical_path_line
from tests.commands import simulate_command as command
from tests.schedule_strategies import schedules

SIZE = ("--ranks", "4", "--micro-batches", "8")
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert command(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert command(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err.removeprefix("simulate: ").strip()


# --- Files --------------------------------------------------------------------------------------


@QUICK
@given(schedules())
def test_a_table_is_read_back_as_it_was(tmp_path: Path, schedule: Schedule) -> None:
    path = tmp_path / "new" / f"{schedule.name}.json"
    write_table(schedule, path)
    assert read_table(path) == schedule
    rows = json.loads(path.read_text())
    assert rows == schedule.rows()


F, B = '["F", 0, 0, 0]', '["B", 0, 0, 0]'
MALFORMED = [
    ("", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("\xff", "is not text"),
    ("[]", "must be"),
    ("{}", "must be"),
    (f'{{"rank0": [{F}], "rank0": [{F}]}}', "'rank0' is there more than once"),
    (f'{{"rank1": [{F}]}}', "has 1 keys, but no rank0"),
    (f'{{"rank0": [{F}], "rank2": [{F}]}}', "has 2 keys, but no rank1"),
    ('{"rank0": 3}', "rank 0: must be a list"),
    (f'{{"rank0": [{F}], "rank1": []}}', "rank 1: must be a list with at least one item"),
    (f'{{"rank0": [{F}, 7]}}', "rank 0, position 1: 7 is neither"),
    (f'{{"rank0": [{F}, []]}}', "rank 0, position 1: [] is neither"),
    (f'{{"rank0": [{F}, ["FB", 0, 0, 0]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, ["D", 0, 0, 0]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, [["F"], 0, 0, 0]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, ["B", 0, 0]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, ["B", 0, 0, 0, 0]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, ["B", 0, 0, 0.0]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, ["B", 0, 0, true]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}, ["B", 0, 0, -1]]}}', "rank 0, position 1:"),
    (f'{{"rank0": [{F}], "rank1": [{F}]}}', "rank 1, position 0: F(flow 0, stage 0"),
    ('{"rank0": [["F", 1, 0, 0], ["B", 1, 0, 0]]}', "has flows [1]"),
    (json.dumps({"rank0": [["FB" * 99, *"abc"]]}), "rank 0, position 0:"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text) if text != "\xff" else path.write_bytes(b'"\xff"')
    with pytest.raises(ScheduleError) as refused:
        read_table(path)
    line = str(refused.value)
    assert line.startswith(f"schedule file {path}") and "\n" not in line
    assert len(line) < len(str(path)) + 300
    assert message in line


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_timeline_is_read_back_as_it_was(tmp_path: Path, name: str) -> None:
    run = simulate(generate(name, 4, 8), CostModel(forward=0.1, pair_factor=0.85, hop=0.3))
    write_timeline(run, tmp_path / "run.json")
    read = read_timeline(tmp_path / "run.json")
    assert (read.schedule, read.spans, read.makespan) == (run.schedule, run.spans, run.makespan)
    assert read.peak_in_flight == run.peak_in_flight
    assert read.idle == pytest.approx(run.idle)


def test_a_malformed_timeline_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_timeline(simulate(generate("1f1b", 1, 1), CostModel()), path)
    good = json.loads(path.read_text())
    assert good["spans"] == [[0, 0, 0.0, 1.0], [0, 1, 1.0, 3.0]]
    first, second = good["spans"]
    cases = [
        ([first], "rank 0, position 1: B(flow 0, stage 0, micro-batch 0) has no span"),
        ([first, second, first], "rank 0, position 0: has two spans"),
        ([first, second, [0, 2, 3, 4]], "rank 0, position 2: not in the schedule"),
        ([first, second, [1, 0, 3, 4]], "rank 1, position 0: not in the schedule"),
        ([first, [0, 1, 0.5, 3.0]], "rank 0, position 1: B(flow 0, stage 0, micro-batch 0) runs"),
        ([first, [0, 1, 2.0, 1.5]], "rank 0, position 1: B(flow 0, stage 0, micro-batch 0) runs"),
        ([[0, 0, -1.0, 1.0], second], "rank 0, position 0: F(flow 0, stage 0, micro-batch 0) runs"),
        ([first, [0, 1.0, 1.0, 3.0]], "rank 0, position 1.0: not in the schedule"),
        ([first, [0, 1, 1.0, float("nan")]], "span 1: must be [rank, position, start, end]"),
        ([first, [0, 1]], "span 1: must be [rank, position, start, end]"),
        ({}, "spans a list"),
    ]
    texts = [(json.dumps(good | {"spans": spans}), message) for spans, message in cases]
    swapped = {"rank0": good["schedule"]["rank0"][::-1]}
    texts += [
        (json.dumps(good | {"schedule": swapped}), "schedule: rank 0, position 0: B"),
        (json.dumps(good | {"schedule": {"rank0": [1]}}), "schedule, rank 0, position 0: 1 is"),
        (json.dumps(good | {"span": []}), "must be an object with the keys"),
        ("[]", "must be an object with the keys"),
    ]
    for text, message in texts:
        path.write_text(text)
        with pytest.raises(ScheduleError) as refused:
            read_timeline(path)
        line = str(refused.value)
        assert line.startswith(f"timeline file {path}") and message in line and "\n" not in line


# --- Command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["interleaved", "zb-h2", "dualpipe"])
def test_a_schedule_file_is_simulated_as_what_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    costs = ("--pair-factor", 0.85, "--hop", 0.1)
    path = tmp_path / "mine.json"
    made = printed_json(capsys, "--schedule", name, *SIZE, *costs, "--table", path)
    again = printed_json(capsys, "--schedule-file", path, *costs, "--compare", "all")
    assert again["mine"] == made[name] == again[name]
    assert again.keys() == {"mine", *GENERATORS}


def test_a_schedule_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dualpipe.json"
    write_table(generate("1f1b", 2, 4), path)
    assert printed_json(capsys, "--schedule-file", path).keys() == {"dualpipe.json"}
    rows = json.loads(path.read_text())
    rows["rank1"][0], rows["rank1"][1] = rows["rank1"][1], rows["rank1"][0]
    path.write_text(json.dumps(rows))
    line = refusal(capsys, "--schedule-file", path)
    wrong = "rank 1, position 0: B(flow 0, stage 1, micro-batch 0) waits for F("
    assert line.startswith(f"schedule file {path}: {wrong}")


def test_costs_come_from_a_file_and_the_command_line_goes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = CostModel(forward=2.0, pair_factor=0.9, hop=0.5, optimizer=3.0)
    write_costs(costs, tmp_path / "c.yaml")
    for options, used in ([], costs), (["--hop", 0], dataclasses.replace(costs, hop=0.0)):
        printed = printed_json(capsys, *SIZE, "--costs", tmp_path / "c.yaml", *options)
        expected = simulate(generate("dualpipe", 4, 8), used)
        assert printed["dualpipe"]["makespan"] == expected.makespan


def test_a_schedule_that_costs_do_not_fit_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("forward: [1, 1, 1, 2]\n")
    arguments = (*SIZE, "--costs", tmp_path / "c.yaml", "--compare", "all", "--json")
    assert command("--schedule", "1f1b", *arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out).keys() == {*GENERATORS} - {"zbv", "dualpipev", "interleaved"}
    assert "left out: zbv: costs: forward has 4 numbers for 8 stages\n" in printed.err
    assert printed.err.count("left out") == 3
    assert "4 numbers for 8 stages" in refusal(capsys, "--schedule", "zbv", *arguments)


def test_a_measured_timeline_is_set_beside_the_simulated_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = simulate(generate("zbv", 4, 8), CostModel(forward=1.2, hop=0.2))
    path = tmp_path / "run.json"
    write_timeline(run, path)
    pictures = ("--svg", tmp_path / "a.svg", "--png", tmp_path / "a.png", "--transfers")
    printed = printed_json(capsys, "--measured", path, *pictures, "--trace", tmp_path / "t.json")
    expected = simulate(generate("zbv", 4, 8), CostModel()).makespan
    assert printed["zbv"]["makespan"] == expected
    assert printed["zbv, measured"]["makespan"] == pytest.approx(run.makespan)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "a.svg").read_text()
    assert "<!-- simulated zbv: 4 ranks" in svg and "<!-- measured zbv: 4 ranks" in svg
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["simulated", "measured"]
    other = printed_json(capsys, "--measured", path, "--schedule", "1f1b")
    assert list(other) == ["1f1b", "zbv, measured"]


def test_the_readable_output_says_where_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SIZE, "--hop", "0.1", "--compare", "all") == 0
    out = capsys.readouterr().out
    for name in GENERATORS:
        row = re.search(rf"^ {name} +(.*) x ", out, re.MULTILINE)
        assert row, name
        makespan, idle, *causes, peak, held = map(float, row[1].split())
        run = simulate(generate(name, 4, 8), CostModel(hop=0.1))
        assert makespan == pytest.approx(run.makespan, rel=1e-5)
        assert idle == pytest.approx(100 * run.idle_fraction, abs=0.051)
        assert sum(causes) == pytest.approx(idle, abs=0.26) and len(causes) == 4
        assert peak == max(run.peak_in_flight)
        assert held == (2 if name == "dualpipe" else 1)
    assert "critical path of dualpipe: " in out


@QUICK
@given(schedules())
def test_the_critical_path_adds_up(schedule: Schedule) -> None:
    run = simulate(schedule, CostModel(pair_factor=0.85, hop=0.1, optimizer=0.7))
    line = critical_path_line(run)
    total, parts = re.fullmatch(r".*: (\S+) = (.*); \d+ items on \d+ ranks?", line).groups()
    summed = sum(float(part.split()[-1]) for part in parts.split(" + "))
    assert summed == pytest.approx(float(total), rel=1e-4) == pytest.approx(run.makespan, rel=1e-4)
    assert "waiting" not in line


def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = "--ranks and --micro-batches are needed, or a file that has a table"
    assert refusal(capsys, "--ranks", "4") == needed
    for option in ("--costs", "--schedule-file", "--measured"):
        size = SIZE if option == "--costs" else ()
        assert "No such file" in refusal(capsys, *size, option, tmp_path / "none.json")
    assert "has a key 'forwards'" in refusal(
        capsys, *SIZE, "--costs", write(tmp_path / "c.yaml", "forwards: 1\n")
    )


def test_costs_of_nothing_are_no_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = (*SIZE, "--forward", 0, "--input-grad", 0, "--weight-grad", 0)
    printed = printed_json(capsys, *free, "--png", tmp_path / "a.png", "--trace", tmp_path / "t")
    assert printed["dualpipe"]["makespan"] == printed["dualpipe"]["idle_fraction"] == 0
    assert command(*free) == 0


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_searched_is_found_written_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    options = (*SIZE, "--pair-factor", 0.85)
    search = ("--search-moves", 8_000, "--memory-cap", 4, "--seed", 3, "--table", path)
    arguments = ("--schedule", "searched", *options, *search, "--compare", "zbv", "--json")
    assert command(*arguments) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert list(result) == ["searched", "zbv"]
    assert result["searched"]["makespan"] < result["zbv"]["makespan"]
    assert max(result["searched"]["peak_in_flight"]) <= 4
    (line,) = [line for line in printed.err.splitlines() if " moves in " in line]
    assert line.startswith(f"search: {result['searched']['makespan']:g} ")
    again = printed_json(capsys, "--schedule-file", path, "--pair-factor", 0.85)
    assert again["found"] == result["searched"]
    assert "memory cap" in refusal(capsys, "--schedule", "searched", *SIZE, "--memory-cap", 0.5)
