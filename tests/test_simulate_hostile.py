"""simulate with absurd sizes, hostile files, full disks, Ctrl-C: one line, the right code."""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from parallel.files.outputs import WriteError, write_file
from parallel.schedule.generators import generate
from parallel.schedule.settings import MOST_CELLS, MOST_RANKS, SettingError, require_counts
from parallel.schedule.table import ScheduleError
from parallel.schedule.table_file import read_table, write_table
from parallel.study.costs import CostModel
from parallel.study.draw import DOTS_PER_INCH, draw
from parallel.study.search.anneal import Budget
from parallel.study.simulate import simulate
from parallel.study.timeline_file import write_timeline
from tests.commands import simulate_command as command

SIZE = "--ranks 2 --micro-batches 4 "
SEARCH = SIZE + "--schedule searched --search-moves 500 --pair-factor 0.85 "


def error_of(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line on stderr of a command that ends on `code`."""
    assert command(*arguments) == code
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("simulate: ")
    assert "\x1b" not in printed.err and len(printed.err) < 600
    return printed.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a table, a measured step, and links to a full disk."""
    monkeypatch.chdir(tmp_path)
    write_table(generate("1f1b", 2, 4), "t.json")
    write_timeline(simulate(generate("1f1b", 2, 4), CostModel()), "m.json")
    write_timeline(simulate(generate("1f1b", 2, 6), CostModel()), "other.json")
    for name in ("full.json", "full.svg", "full.png"):
        Path(name).symlink_to("/dev/full")
    Path("deep.json").write_text("[" * 200_000)
    Path("nested.json").write_text('{"rank0": [' + "[" * 900 + "]" * 900 + "]}")
    Path("far.json").write_text('{"rank0": [["F", 0, 0, 0], ["F", 0, 0, 999999999]]}')
    Path("vast.json").write_text('{"rank0": [["F", 0, 0, 1' + "0" * 4000 + "]]}")
    Path("deep.yaml").write_text("forward: " + "[" * 200_000)
    bomb = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 12))
    Path("bomb.yaml").write_text(f"a0: &a0 [1]\n{bomb}\nforward: *a11\n")
    Path("endless.yaml").write_text("&a [*a]")
    Path("nan.yaml").write_text("forward: [.nan, .inf]")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # sizes
        ("--ranks 1000000 --micro-batches 8", "--ranks must be at most 4096, got 1000000"),
        ("--ranks 8 --micro-batches 1000000000", "set --micro-batches to 32768 or less"),
        (SEARCH.replace("4", "1000000000"), "--ranks x --micro-batches must be at most"),
        ("--ranks 0 --micro-batches 8", "--ranks: must be a whole number of 1 or more"),
        ("--ranks 1e6 --micro-batches 8", "not '1e6'"),
        (f"--ranks {'9' * 5000} --micro-batches 8", "--ranks: must be a whole number"),
        (SEARCH + "--memory-cap 1e308", "--memory-cap: must be a number from 0 to 1e+15"),
        ("--ranks 4", "--ranks and --micro-batches are needed, or a file"),
        ("--ranks 4 --micro-batches 5", "dualpipe needs --micro-batches to be even, got 5"),
        ("--ranks 3 --micro-batches 8", "set --ranks to 4, or --schedule to dualpipev"),
        # costs
        (SIZE + "--hop nan", "--hop: must be a number from 0 to 1e+15, not 'nan'"),
        (SIZE + "--forward inf", "--forward: must be a number"),
        (SIZE + "--forward -1", "--forward: must be a number"),
        (SIZE + "--costs nan.yaml", "forward must be a number from 0"),
        (SIZE + "--costs bomb.yaml", "the alias *a0 is not allowed"),
        (SIZE + "--costs endless.yaml", "the alias *a is not allowed"),
        (SIZE + "--costs deep.yaml", "nested deeper than 20"),
        (SIZE + "--costs .", "is a folder"),
        (SIZE + "--costs /dev/zero", "is a device"),
        # tables and timelines
        ("--schedule-file deep.json", "is not JSON: it is nested too deeply"),
        ("--schedule-file nested.json", "rank 0, position 0: [[["),
        ("--schedule-file far.json", "micro-batches must be at most 262144"),
        ("--schedule-file vast.json", "a number of 13288 bits"),
        ("--measured deep.json", "is not JSON: it is nested too deeply"),
        ("--measured t.json", "must be an object with the keys"),
        ("--schedule-file t.json --measured other.json", "but the measured step has 2 and 6"),
        # names
        (SIZE + "--schedule two-pipes", "argument --schedule: no schedule is called 'two-pipes'"),
        (SIZE + "--compare two-pipes", "argument --compare: no schedule is called 'two-pipes'"),
        (SIZE + "--schedule \x1b[31mred", r"no schedule is called '\x1b[31mred'"),
        (SIZE + "--\x1b[31mred", r"unrecognized arguments: --\x1b[31mred"),
        (SIZE + "--costs \x1b[31mno.yaml", r"\x1b[31mno.yaml: cannot be read"),
        # what would be ignored beside something else
        (SIZE + "--search-seconds 3", "--search-seconds has no effect without --schedule searched"),
        (SIZE + "--search-moves 3", "--search-moves has no effect without --schedule searched"),
        (SIZE + "--memory-cap 3", "--memory-cap has no effect without --schedule searched"),
        (SIZE + "--seed 0", "--seed has no effect without --schedule searched"),
        (SEARCH + "--search-seconds 1", "--search-seconds has no effect with --search-moves"),
        (SIZE + "--transfers --trace t", "--transfers has no effect without --svg or --png"),
        (SIZE + "--lowered", "--lowered has no effect without --table"),
        (SIZE + "--schedule-file t.json", "--ranks has no effect with --schedule-file"),
        ("--micro-batches 4 --measured m.json", "--micro-batches has no effect with --measured"),
        ("--schedule-file t.json --schedule zbv", "not allowed with argument"),
        # files that cannot be written, before a search that would last for hours
        (SEARCH.replace("500", "99999999") + "--table /proc/no/t.json", "/proc/no/t.json cannot"),
        (SEARCH.replace("500", "99999999") + "--table .", ". cannot be written: Is a directory"),
        (SIZE + "--svg a.jpeg", "--svg: must end in .svg, not be 'a.jpeg'"),
        (SIZE + "--svg a.png", "--svg: must end in .svg"),
        (SIZE + "--trace a.json --table ./a.json", "--trace and --table are the same file: a.json"),
        ("--schedule-file t.json --table t.json", "--schedule-file and --table are the same file"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    arguments: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(capsys, 2, *arguments.split())
    assert read_table("t.json") and not Path("a.json").exists()


@pytest.mark.parametrize("option", ["--table full.json", "--trace full.json", "--svg full.svg"])
def test_a_full_disk_takes_no_results(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*(SIZE + option).split(), "--json") == 1
    printed = capsys.readouterr()
    file = option.split()[1]
    assert printed.err == f"simulate: {file} cannot be written: No space left on device\n"
    assert json.loads(printed.out)["dualpipe"]["makespan"] == 12


@pytest.mark.parametrize("option", ["--json", "--compare=all"])
def test_a_full_stdout(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert command(*SIZE.split(), option) == 1
    assert capsys.readouterr().err.endswith("simulate: standard output: No space left on device\n")


def test_a_stdout_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert command(*SIZE.split(), "--json") == 141


def test_ctrl_c_while_importing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = builtins.__import__

    def interrupted(name: str, *others: Any) -> Any:
        if name == "parallel.study.requested":
            raise KeyboardInterrupt
        return original(name, *others)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert error_of(capsys, 130, *SIZE.split()) == "simulate: stopped by Ctrl-C\n"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_simulating(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("parallel.study.requested.simulate", interrupt)
    assert error_of(capsys, 130, *SIZE.split()) == "simulate: stopped by Ctrl-C\n"


def test_ctrl_c_ends_a_search_with_what_it_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share, path = Budget.share, tmp_path / "found.json"

    def stopped(budget: Budget) -> float:
        if budget.made >= 4000:
            raise KeyboardInterrupt
        return share(budget)

    monkeypatch.setattr(Budget, "share", stopped)
    search = ("--ranks", 4, "--micro-batches", 8, "--schedule", "searched", "--search-moves", 9000)
    assert command(*search, "--pair-factor", 0.85, "--table", path, "--json") == 130
    printed = capsys.readouterr()
    assert "simulate: Ctrl-C ended the search; this is its best table so far" in printed.err
    makespan = simulate(read_table(path), CostModel(pair_factor=0.85)).makespan
    assert json.loads(printed.out)["searched"]["makespan"] == makespan < 24.75


NAME = "[red]a [bold] $x$ :smile: \x1b[31m\udcff"
PRINTED = r"[red]a [bold] $x$ :smile: \x1b[31m\udcff"


def test_names_are_plain_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("t.json", f"{NAME}.json")
    assert command("--schedule-file", f"{NAME}.json", "--svg", "a.svg", "--trace", "t") == 0
    printed = capsys.readouterr().out
    assert "\n [red]a [bold] $x$" in printed and f"critical path of {PRINTED}: " in printed
    assert f"<!-- {PRINTED}: 2 ranks" in Path("a.svg").read_text()
    values = json.loads(Path("m.json").read_text())
    Path("m.json").write_text(json.dumps(values | {"name": NAME}))
    assert command("--measured", "m.json", "--compare", "gpipe") == 0
    assert f"critical path of {PRINTED}: " in capsys.readouterr().out


def test_limits_of_a_size() -> None:
    require_counts("zbv", MOST_RANKS, MOST_CELLS // MOST_RANKS)
    for ranks, micro_batches in ((MOST_RANKS + 1, 1), (1, MOST_CELLS + 1), (512, 513)):
        with pytest.raises(SettingError, match="at most"):
            generate("zbv", ranks, micro_batches)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(300, 2), (4, 700)])
def test_a_picture_has_its_limits(ranks: int, micro_batches: int) -> None:
    """No more than some ten million pixels, and no label upon another."""
    run = simulate(generate("1f1b", ranks, micro_batches), CostModel())
    figure = draw({"simulated ": run, "measured ": run}, transfers=True)
    across, up = figure.get_size_inches()
    assert across <= 32 and up <= 43
    assert across * up * DOTS_PER_INCH**2 < 36_000_000
    for axes in figure.axes:
        height = axes.get_position().height * up
        assert len(axes.get_yticks()) <= height / 0.12 + 1


# --- A table with its messages ------------------------------------------------------------------


def test_a_table_with_its_messages_is_read_back(folder: Path) -> None:
    arguments = ("--ranks", 4, "--micro-batches", 8, "--schedule", "dualpipev", "--table", "l.json")
    assert command(*arguments, "--lowered", "--json") == 0
    table = generate("dualpipev", 4, 8)
    assert read_table("l.json").programs == table.programs
    rows = json.loads(Path("l.json").read_text())
    for kind, flow, stage, micro_batch, source, destination, sent, posted, used in rows["messages"]:
        assert posted <= used and source != destination
        item, made = rows[f"rank{destination}"][used], rows[f"rank{source}"][sent]
        below = stage - 1 if kind == "activation" else stage + 1
        assert [flow, stage, micro_batch] in ([item[1:]] if item[0] != "FB" else item[1:])
        assert [flow, below, micro_batch] in ([made[1:]] if made[0] != "FB" else made[1:])
    assert len(rows["messages"]) == 2 * 6 * 8
    rows["messages"][3][7] += 1
    Path("l.json").write_text(json.dumps(rows))
    with pytest.raises(ScheduleError, match=r'l.json: its "messages" are not those that its items'):
        read_table("l.json")


def test_a_file_that_cannot_be_written_whole_leaves_the_older_one(tmp_path: Path) -> None:
    older, link = tmp_path / "table.json", tmp_path / "link.json"
    older.write_text("good")
    link.symlink_to(older)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(WriteError, match=r"table\.json cannot be written: File too large"):
            write_file(older, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert older.read_text() == "good" and len(list(tmp_path.iterdir())) == 2
    write_file(link, "new")
    assert (older.read_text(), link.read_text()) == ("good", "new")
