"""What a run has written, read back: its table, its picture, and launch/report.py."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from launch.report import main
from trainer.errors import RunError
from trainer.report.events import KINDS, Event, name_of
from trainer.report.json_lines import FILE
from trainer.report.picture import draw, draw_own_run, points, save_picture
from trainer.report.run_log import RunLog, Series, read_run, short_names
from trainer.report.summary import summary, table

WIDTH = 80


def run_in(folder: Path, steps: int = 3, seconds: float = 0.5) -> Path:
    """A run folder whose loss is 5, 4, 3 ...; the second step took four times as long."""
    folder.mkdir(parents=True)
    rows = [
        {
            "step": n, "loss": 5.0 - n, "validation_loss": 4.0 + (n - 1) ** 2, "gradient_norm": 2.0,
            "tokens": 100, "seconds": seconds * (4 if n == 1 else 1), "tokens_per_second": 7.0,
            "load_max": 1.5, "validation_bits_per_byte": 3.0, "loads": [[0.5, 0.5]], "sample": "x",
        }
        for n in range(steps)
    ]  # fmt: skip
    (folder / FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


STEP = b'{"step": 0, "loss": 2.0}\n'
# Content of metrics.jsonl: the loss by step, lines skipped, values not finite.


READABLE: dict[str, tuple[bytes, dict[int, float], int, int]] = {
    "whole": (STEP + b'{"step": 1, "loss": 1}\n', {1: 2.0, 2: 1.0}, 0, 0),
    "partial last line": (STEP + b'{"step": 1, "lo', {1: 2.0}, 1, 0),
    "no numbers": (STEP + b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity}',
                   {1: 2.0, 2: np.nan, 3: np.nan}, 0, 2),
    "too large": (STEP + b'{"step": 1, "loss": 1' + b"0" * 400 + b"}", {1: 2.0, 2: np.nan}, 0, 1),
    "sums too large": (STEP + b'{"step": 1, "loss": 1e308}\n{"step": 2, "loss": 1e308}',
                       {1: 2.0, 2: np.nan, 3: np.nan}, 0, 2),
    "far too large": (STEP + b'{"step": 1, "loss": 1' + b"0" * 9999 + b"}", {1: 2.0}, 1, 0),
    "other types": (STEP + b'{"step": 1, "loss": "1", "lr": true, "a": [1], "b": null}', {1: 2.0},
                    0, 0),
    "other keys": (b'{"step": 4, "x": 1}\n' + STEP + b'{"step": 2, "loss": 3}', {1: 2.0, 3: 3.0},
                   0, 0),
    "a step twice": (STEP + b'{"step": 0, "loss": 9}\n', {1: 9.0}, 0, 0),
    "no steps": (STEP + b'{"loss": 1}\n{"step": -1}\n{"step": 0.5}\n{"step": true}\n{"step": 1e99}'
                 b'\n[1]\n3\n{"step": NaN}\n{"step": 9007199254740992}', {1: 2.0}, 9, 0),
    "deep": (STEP + b"[" * 100_000 + b"\n" + b'{"step":' * 100_000, {1: 2.0}, 2, 0),
    "binary": (STEP + bytes(range(256)) * 9, {1: 2.0}, 10, 0),
    "empty lines": (b"\n\r\n" + STEP + b"  \n", {1: 2.0}, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", READABLE)
def test_what_can_be_read_of_a_run_is_read(tmp_path: Path, case: str) -> None:
    content, loss, skipped, not_finite = READABLE[case]
    (tmp_path / FILE).write_bytes(content)
    for path in (tmp_path, tmp_path / FILE):
        run = read_run(path)
        assert (run.name, run.skipped, run.not_finite) == (str(path), skipped, not_finite)
        series = run.series["loss"]
        assert series.steps.tolist() == list(loss)
        np.testing.assert_array_equal(series.values, list(loss.values()))
        assert run.steps == max([*loss, 5 if case == "other keys" else 2 if "types" in case else 1])
        assert run.last("loss") == [value for value in loss.values() if np.isfinite(value)][-1]
        json.dumps(summary(run), allow_nan=False)


def spoil(case: str, folder: Path) -> Path:
    """A path that is no run."""
    file = folder / FILE
    if case == "no folder":
        return folder / "nowhere"
    if case in ("FIFO", "a folder inside"):
        (os.mkfifo if case == "FIFO" else os.mkdir)(file)
    elif case == "device":
        file.symlink_to("/dev/zero")
    elif case == "loop":
        file.symlink_to(file)
    elif case == "a name too long":
        return folder / ("x" * 300)
    elif case != "no file":
        file.write_bytes({"empty": b"", "no step yet": b"\n", "all bad": b"a\nb\n\xff\n"}[case])
    return folder


NO_RUNS = {
    "no folder": "cannot be read", "no file": "cannot be read", "FIFO": "not a file",
    "a folder inside": "not a file", "device": "not a file", "loop": "cannot be read",
    "a name too long": "cannot be read", "empty": "the file is empty",
    "no step yet": "the file is empty", "all bad": "none of its 3 lines is one",
}  # fmt: skip


@pytest.mark.parametrize("case", NO_RUNS)
def test_what_is_no_run_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    folder = tmp_path / "\x1b[31mred\nrun"
    folder.mkdir()
    with pytest.raises(RunError, match=NO_RUNS[case]) as caught:
        read_run(spoil(case, folder))
    line = str(caught.value)
    assert line.isprintable() and r"\x1b[31mred\nrun" in line
    assert f"no picture of the run: {line}" == draw_own_run(folder) or case in (
        "no folder", "a name too long",
    )  # fmt: skip


# Pictures


def size_of(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
    assert 20_000 < len(content) < 1_000_000
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def long_run(name: str, steps: int = 100_000) -> RunLog:
    at = np.arange(1, steps + 1)
    values = 10.0 / np.sqrt(at)
    values[::7] = np.nan
    names = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "validation_loss")
    return RunLog(name, steps, {name: Series(at, values) for name in names}, 0, 0)


HOSTILE_NAMES = (
    "$\\frac{$", "[red]_x[/]", "_hidden", "\x1b[31m\n\t", "名前 🙂", "%s{}", "x" * 5000,
)  # fmt: skip


def test_pictures_of_one_and_of_many_runs_have_one_size(tmp_path: Path) -> None:
    huge = Series(np.array([1, 2, 3]), np.array([1e100, -1e100, 0.0]))
    cases = [
        [long_run("one")],
        [long_run(name, steps=50) for name in HOSTILE_NAMES * 5],
        [RunLog("none", 1, {}, 0, 0), RunLog("huge", 3, {"loss": huge}, 0, 0)],
    ]
    for number, runs in enumerate(cases):
        png = tmp_path / f"{number}.png"
        save_picture(runs, png)
        assert size_of(png) == (1430, 880)
    assert len(list(tmp_path.iterdir())) == len(cases)


def test_a_long_name_takes_no_room_from_the_loss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the layout collapsed
        draw([long_run("x" * 5000, steps=5)]).canvas.draw()


def test_points_are_means_with_their_range() -> None:
    drawn = points(long_run("one").series["loss"])
    assert drawn.steps.size == drawn.mean.size <= 250
    assert np.all(drawn.low <= drawn.mean) and np.all(drawn.mean <= drawn.high)
    assert drawn.high[0] == 10.0 / np.sqrt(2) and drawn.low[-1] == 10.0 / np.sqrt(100_000)
    few = Series(np.array([3, 5]), np.array([1.0, 2.0]))
    assert [part.tolist() for part in points(few)] == [[3, 5], *[[1, 2]] * 3]


def test_drawing_never_fails_a_run_nor_follows_a_link(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run")
    (tmp_path / "target").write_text("precious")
    (folder / "run.png").symlink_to(tmp_path / "target")
    assert draw_own_run(folder) == f"picture in {folder / 'run.png'}"
    assert size_of(folder / "run.png") and (tmp_path / "target").read_text() == "precious"
    (folder / "run.png").unlink()
    (folder / "run.png").mkdir()
    said = draw_own_run(folder)
    assert said == f"no picture of the run: {folder / 'run.png'}: cannot be written: Is a directory"
    assert {path.name for path in folder.iterdir()} == {"run.png", FILE}


def test_events_are_marks_on_the_curves_with_a_legend() -> None:
    run = long_run("one", steps=1000)
    events = [Event(kind, 100 * n, "x") for n, kind in enumerate(KINDS, start=1)]
    events += [Event("checkpoint", n, "x") for n in range(0, 100_000, 5)]
    figure = draw([run, replace(long_run("two", steps=50), events=tuple(events))])
    loss, *others = figure.axes
    marks = [line for line in loss.lines if line.get_linestyle() == "None"]
    by_shape = {line.get_marker(): line for line in marks if len(line.get_xdata())}
    assert set(by_shape) == {"^", "<", "X", "*", "D", "|", "x", "o"}, "o: validation"
    spike = by_shape["*"]
    assert list(spike.get_xdata()) == [1 + 100 * (1 + KINDS.index("spike"))]
    assert list(spike.get_ydata()) == [run.series["loss"].values[48]], "the last finite one"
    assert len(by_shape["|"].get_xdata()) <= 500
    legends = [a for a in loss.get_children() if isinstance(a, Legend)]
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert sorted(["one", "two"]) in texts and sorted(map(name_of, KINDS)) in map(sorted, texts)
    assert "*" in {line.get_marker() for panel in others for line in panel.lines}
    assert "|" not in {line.get_marker() for panel in others for line in panel.lines}


# launch/report.py


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that is drawn at once."""
    monkeypatch.setattr("trainer.report.picture.draw", lambda runs: Figure(figsize=(1, 1)))


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_is_a_row_and_a_picture_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_in(tmp_path / "tr\ny" / "runs" / "cpu_4proc-2")
    happened = [("spike", "9\x1b[31m"), *[("checkpoint", "in x")] * 2]
    with open(folder / FILE, "a") as file:
        for kind, text in happened:
            file.write(json.dumps({"event": kind, "step": 2, "text": text}) + "\n")
        file.write('{"event": "unknown", "step": 2, "text": "x"}\n')
        file.write('{"step": 3, "loss": NaN}\n{"st')
    code, out, err = report(capsys, folder)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "run          steps    loss   valid    best  bits/B  norm  tokens/s  time",
        "cpu_4proc-2      4  3.0000  5.0000  4.0000  3.0000  2.00       100  0:03",
        "cpu_4proc-2: 1 loss spike, 2 checkpoints, 2 lines skipped, 1 values not finite",
        r"  step 3: loss spike: 9\x1b[31m",
        rf"picture in {tmp_path}/tr\ny/runs/cpu_4proc-2/run.png",
    ]
    assert size_of(folder / "run.png")


@pytest.mark.usefixtures("small")
def test_json_has_the_fields_that_help_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [run_in(tmp_path / name) for name in ("a", "b")]
    with open(folders[1] / FILE, "a") as file:
        file.write('{"event": "spike", "step": 1, "text": "loss 9"}\n')
    code, out, err = report(capsys, *folders, "--json")
    said = json.loads(out)
    assert (code, err, said["png"], said["problems"]) == (0, "", str(folders[0] / "runs.png"), [])
    assert said["runs"][1] == {
        "run": str(folders[1]), "steps": 3, "loss": 3.0, "validation_loss": 5.0,
        "validation_bits_per_byte": 3.0, "gradient_norm": 2.0, "load_max": 1.5,
        "best_validation_loss": 4.0, "tokens_per_second": 100.0, "seconds": 3.0,
        "events": [{"event": "spike", "step": 2, "text": "loss 9"}],
        "skipped_lines": 0, "values_not_finite": 0,
    }  # fmt: skip
    assert main(["--help"]) == 0
    words = capsys.readouterr().out.split("--json prints {runs, png, problems}; ")[1].split()
    fields = words[words.index("has") + 1 :][: len(said["runs"][1])]
    assert [word.rstrip(",.") for word in fields] == list(said["runs"][1])


def test_losses_are_compared_pair_by_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours are 1 % above theirs in the first pair, and in the second half of the second."""
    for name, factors in (("a", (1.01, 1.01)), ("b", (1, 1.01)), ("c", (1, 1)), ("d", (1, 1))):
        (tmp_path / name).mkdir()
        losses = [(4 - step / 20) * factors[step >= 20] for step in range(40)]
        rows = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses)]
        (tmp_path / name / FILE).write_text("\n".join(rows))
    ours, theirs = [tmp_path / "a", tmp_path / "b"], [tmp_path / "c", tmp_path / "d"]
    code, out, err = report(capsys, *ours, "--against", *theirs, "--json")
    said = json.loads(out)
    assert (code, err) == (0, "") and size_of(Path(said["png"]))
    first, second = said["difference"]["pairs"]
    assert first["all_steps"] == pytest.approx(0.01)
    assert second["second_half"] == pytest.approx(0.01) and 0.003 < second["all_steps"] < 0.005
    assert 0.0065 < said["difference"]["together"]["all_steps"] < 0.0075
    assert len(said["difference"]["windows"]) == 20
    code, out, err = report(capsys, *ours, "--against", theirs[0])
    assert code == 1 and "one for each" in err


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_done_is_said_and_the_rest_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    good, bad = run_in(tmp_path / "good"), tmp_path / "bad"
    option = ["--json"] * as_json
    code, out, err = report(capsys, bad, good, *option)
    assert code == 1 and "good" in out and (good / "run.png").exists()
    assert err.splitlines() == [
        f"report: {bad}: cannot be read: No such file or directory; give a run folder, runs/NAME"
    ]
    code, out, err = report(capsys, bad, *option)
    assert code == 1 and len(err.splitlines()) == 1
    nothing = {"runs": [], "png": None, "problems": [err[len("report: ") : -1]]}
    assert (json.loads(out) == nothing) if as_json else out == ""
    for png, why in (
        (tmp_path / "no/x.png", "No such file"), (good / "x.png", "Is a directory"),
        (good / FILE / "x.png", "Not a directory"),
    ):  # fmt: skip
        (good / "x.png").mkdir(exist_ok=True)
        code, out, err = report(capsys, good, "--png", png, *option)
        assert code == 1 and err.startswith(f"report: {png}: cannot be written: {why}")
        assert len(err.splitlines()) == 1 and "good" in out and "picture in" not in out
        assert not as_json or json.loads(out)["png"] is None


@pytest.mark.parametrize("arguments", [[], ["--png", "x.svg", "run"], ["run", "--wide"]])
def test_wrong_arguments_end_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2 and len(capsys.readouterr().err.splitlines()) == 1


NAMES = {  # paths: what they are called
    ("runs/a", "runs/b"): ["a", "b"],
    ("x/runs/a", "y/runs/a", "x/runs/b"): ["x/runs/a", "y/runs/a", "b"],
    ("x/a/metrics.jsonl", "y/a", "."): ["x/a", "y/a", "here"],
    ("runs/a", "runs/a/"): ["a", "a"],
    ("a", "b/a", "/a"): ["here/a", "b/a", "/a"],
}


@pytest.mark.parametrize("paths", NAMES)
def test_runs_are_called_by_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_names([RunLog(path, 1, {}, 0, 0) for path in paths]) == NAMES[paths]


def test_a_table_never_is_wider_than_80() -> None:
    numbers = (1.23456, 123456.789, 9.99e99, -1e-7, 0)
    rows = [{key: n for key in summary(RunLog("x", 1, {}, 0, 0))} for n in numbers]
    for values in rows:
        values["seconds"] = abs(values["seconds"]) % 1e9
    names = ["x", "n" * 40, "m" * 80, "", "y" * 9]
    lines = list(table(names, rows))
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line in names[1:3]] == names[1:3]
    assert lines[-1].startswith("y" * 9 + " ")


# The console
