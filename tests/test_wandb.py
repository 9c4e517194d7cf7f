"""Weights & Biases as a sink: the package itself, offline, and one that stands in for it."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainer.config.schema import MetricsConfig
from trainer.errors import RunError
from trainer.report.metrics import Metrics, Recorded
from trainer.report.sinks import open_sinks
from trainer.report.wandb_identity import Identity, has_key, saved_id
from trainer.report.weights_and_biases import WeightsAndBiases

pytest.importorskip("wandb")

# A stand-in


class FakeRun:
    """The library's run, as far as it is used."""

    url, step = "https://wandb.example/run", 0

    def __init__(self, module: Any, offline: bool) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.alerts: list[tuple[str, str]] = []
        self._module, self.offline, self.finished = module, offline, False

    def define_metric(self, name: str, **options: Any) -> None:
        pass

    def log(self, charts: dict[str, Any], step: int) -> None:
        if self._module.fail:
            raise ValueError("no\nspace")
        self.logged.append((step, charts))

    def alert(self, title: str, text: str, level: str) -> None:
        self.alerts.append((title, text))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A person without an account."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="wandb.py")
    module.fail, module.started = False, []
    module.Settings = lambda **settings: SimpleNamespace(**settings)
    service = SimpleNamespace(settings=SimpleNamespace(base_url="https://wandb.example"))
    module.setup = lambda settings=None: service
    module.teardown = lambda: None
    module.Html = lambda page: ("page", page)
    module.Image = lambda path: ("image", path)
    module.Histogram = lambda np_histogram: ("bins", *(part.tolist() for part in np_histogram))

    def init(mode: str, **options: Any) -> FakeRun:
        module.started.append(mode)
        module.options = options
        module.run = FakeRun(module, mode == "offline")
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def sink_of(folder: Path, mode: Any) -> WeightsAndBiases:
    folder.mkdir(parents=True, exist_ok=True)
    return WeightsAndBiases(folder, mode, {"run": {"steps": 3}}, Identity.of(folder))


@pytest.mark.parametrize(
    ("mode", "key", "started"),
    [("offline", True, "offline"), ("online", True, "online"), ("on", True, "online"),
     ("on", False, "offline")],
)  # fmt: skip
def test_a_run_is_logged_and_its_end_says_where_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_wandb: Any,
    mode: Any,
    key: bool,
    started: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    folder = tmp_path / "my runs" / "a"
    metrics = Metrics([sink_of(folder, mode)])
    metrics.record("loss", 1.5)
    metrics.record("loads", [[0.25, 0.75], [0.5, 0.5]])
    metrics.record("sample", "<b>&", "last")
    metrics.record("timeline", Path("timelines/step-1.png"), "last")
    metrics.event("spike", 0, "9")
    metrics.event("checkpoint", 0, "in a")
    metrics.end_step(0)
    said = metrics.close()
    run = fake_wandb.run
    assert run.finished and fake_wandb.started == [started]
    assert fake_wandb.options["name"] == "a" and fake_wandb.options["config"]["run"]["steps"] == 3
    assert run.logged == [
        (0, {"step": 1, "events/spike": 1}),
        (0, {"step": 1, "events/checkpoint": 1}),
        (0, {
            "step": 1, "loss": 1.5, "sample": ("page", "<pre>&lt;b&gt;&amp;</pre>"),
            "loads/0": ("bins", [0.25, 0.75], [0, 1, 2]),
            "loads/1": ("bins", [0.5, 0.5], [0, 1, 2]),
            "timeline": ("image", str(folder / "timelines/step-1.png")),
        }),
    ]  # fmt: skip
    assert run.alerts == [("loss spike", "step 1: loss spike: 9")]
    assert said == {
        "offline": ["to send the run to Weights & Biases: wandb sync "
                    f"'my runs/a/wandb'/offline-run-*-{saved_id(folder)}"],
        "online": ["Weights & Biases: https://wandb.example/run"],
    }[started]  # fmt: skip


def test_a_service_that_fails_costs_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_wandb: Any
) -> None:
    fake_wandb.fail = True
    sink = sink_of(tmp_path, "offline")
    for step in range(3):
        sink.write(step, {"loss": Recorded(1.0, "mean")})
    assert capsys.readouterr().err == "metrics.wandb: no space; training on\n"


@pytest.mark.parametrize("broken", ["online", "offline"])
def test_a_service_that_does_not_start_never_stops_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake_wandb: Any,
    broken: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    whole = fake_wandb.init

    def init(mode: str, **options: Any) -> FakeRun:
        if mode == "online" or broken == "offline":
            raise OSError("no\nnetwork")
        run: FakeRun = whole(mode, **options)
        return run

    fake_wandb.init = init
    sink = sink_of(tmp_path, "online")
    sink.write(0, {"loss": Recorded(1.0, "mean")})
    said = sink.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "metrics.wandb: no network; keeping its files offline; training on"
    if broken == "offline":
        assert said is None and lines[1:] == ["metrics.wandb: no network; training on"]
    else:
        assert fake_wandb.run.logged and said is not None and "wandb sync" in said


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("missing", "pip install"),
        ("a folder of that name", "pip install"),
        ("no key", "online needs a key, and none is set: .* set metrics.wandb to offline"),
    ],
)
def test_what_a_person_has_to_change_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Any, case: str, line: str
) -> None:
    specs = {"missing": None, "a folder of that name": ModuleSpec("wandb", None)}
    if case in specs:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: specs[case])
    with pytest.raises(RunError, match=rf"^metrics\.wandb: .*{line}") as caught:
        sink_of(tmp_path, "online")
    assert "\n" not in str(caught.value)


def test_a_key_is_found_where_the_library_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, file = "https://wandb.example", tmp_path / "home" / ".netrc"
    assert not has_key(server)
    file.parent.mkdir()
    for content, found in (
        ("machine other.example login user password x", False),
        ("default login user password x", False),
        ("machine wandb.example login user password x", True),
        ("machine api.wandb.ai login user password x", True),
        ("machine \xff", False),
    ):
        file.write_text(content)
        file.chmod(0o600)
        assert has_key(server) == found, content
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_key(server)


# Restarts


def test_positions_never_go_back_over_restarts_and_rollbacks(tmp_path: Path) -> None:
    positions = []
    reached = 0
    # Steps as each process logs them, the last of them more than once.
    for steps in ([0, 1, 2, 2, 3, 1, 1, 2, 3], [2, 3, 4], [5, 6], [0, 1]):
        identity = Identity.of(tmp_path, steps[0], reached)
        positions += [(steps[0], identity.id, identity.position(step)) for step in steps]
        reached = steps[-1] + 1
    at = [position for _, _, position in positions]
    assert at == sorted(at) and at[:5] == [0, 1, 2, 2, 3]
    assert len(set(at)) == len(at) - 2, "two steps have one position"
    assert {name for _, name, _ in positions} == {saved_id(tmp_path)}
    assert Identity.of(tmp_path / "a", run_id="from-a-checkpoint").id == "from-a-checkpoint"
    (tmp_path / "wandb/run.json").write_text('{"id": "../x", "shift": 0}')
    assert saved_id(tmp_path) is None


def records_at_the_end(file: Path) -> list[Any]:
    """The records of an offline run that has been finished, which its writer is a little after."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = list(records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{file} does not end")


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block is padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_the_library_itself_falls_back_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.report.weights_and_biases._START_SECONDS", 1)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers
    sink = sink_of(tmp_path / "run", "on")
    sink.write(0, {"loss": Recorded(1.5, "mean")})
    assert "wandb sync" in (sink.close() or "")
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    found = [record.WhichOneof("record_type") for record in records_at_the_end(file)]
    assert found.count("history") == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("metrics.")]
    assert len(said) == 1 and said[0].endswith("; keeping its files offline; training on")


def test_the_library_itself_takes_a_run_and_its_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes as seen by wandb: the second goes on from step 2 where the first reached 3."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers
    folder = tmp_path / "run"
    (folder / "timelines").mkdir(parents=True)
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63"
        "606060f80f0001040100b6ab36bf0000000049454e44ae426082"
    )
    (folder / "timelines/step-1.png").write_bytes(png)
    for done, steps in ((None, range(3)), (2, range(2, 4))):
        metrics = Metrics(open_sinks(folder, MetricsConfig(wandb="on"), "run: {steps: 4}", done))
        if done:
            metrics.event("restart", done, "after step 2")
        for step in steps:
            metrics.record("loss", 5.0 - step)
            metrics.record("loads", [[0.25, 0.75]])
            metrics.record("sample", "text", "last")
            if not step:
                metrics.record("timeline", Path("timelines/step-1.png"), "last")
            metrics.end_step(step)
        said = metrics.close()
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{saved_id(folder)}"}
    assert said[0].endswith(f"/offline-run-*-{saved_id(folder)}")
    history = []
    for file in files:
        for record in records_at_the_end(file):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json
                         for item in record.history.item}  # fmt: skip
                history.append((record.history.step.num, items))
    assert [at for at, _ in history] == [0, 1, 2, 3, 4]
    assert [json.loads(items["step"]) for _, items in history] == [1, 2, 3, 3, 4]
    assert [json.loads(items["loss"]) for _, items in history] == [5, 4, 3, 3, 2]
    assert "events/restart" in history[3][1]
    assert json.loads(history[0][1]["loads/0/values"]) == [0.25, 0.75]
    assert history[0][1]["timeline/_type"] == '"image-file"'
    assert capfd.readouterr().err == ""
