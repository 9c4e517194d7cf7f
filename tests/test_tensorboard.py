"""TensorBoard as a sink, its files read back by the package itself."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.test_metrics import largest_file
from trainer.config.schema import MetricsConfig
from trainer.errors import RunError
from trainer.report.metrics import Metrics
from trainer.report.sinks import open_sinks, require_packages
from trainer.report.tensorboard import FOLDER, TensorBoard

pytest.importorskip("tensorboard")


def tiny_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", 3, 2, 8, 6, 0, 0, 0)
    pixels = zlib.compress(2 * (b"\0" + 3 * b"\1\2\3\4"))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / FOLDER), size_guidance={"tensors": 0, "scalars": 0})
    return reader.Reload()


def test_a_run_and_its_restart_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "timelines").mkdir()
    (tmp_path / "timelines/step-1.png").write_bytes(tiny_png())
    config = MetricsConfig(tensorboard=True)
    for done, steps in ((None, range(3)), (2, range(2, 4))):
        metrics = Metrics(open_sinks(tmp_path, config, "run: {steps: 4}", done))
        if done:
            metrics.event("restart", done, "after step 2")
        for step in steps:
            metrics.record("loss", 5.0 - step + (done or 0) * 10)
            metrics.record("loads", [[0.25, 0.75], [0.5, 0.5]])
            metrics.record("sample", "a text", "last")
            if not step:
                metrics.record("timeline", Path("timelines/step-1.png"), "last")
            metrics.end_step(step)
        metrics.close()
    reader = read_back(tmp_path)
    assert [(e.step, e.value) for e in reader.Scalars("loss")] == [(1, 5), (2, 4), (3, 23), (4, 22)]
    assert [e.step for e in reader.Scalars("events/restart")] == [3]
    first = reader.Histograms("loads/0")[0].histogram_value
    assert (first.bucket_limit, first.bucket) == ([1.0, 2.0], [0.25, 0.75])
    (image,) = reader.Images("timeline")
    assert (image.step, image.width, image.height) == (1, 3, 2)
    assert image.encoded_image_string == tiny_png()
    texts = {
        tag: reader.Tensors(tag)[-1].tensor_proto.string_val[0] for tag in reader.Tags()["tensors"]
    }
    assert b"run: {steps: 4}" in texts["config/text_summary"]
    assert b"a text" in texts["sample/text_summary"]
    assert texts["events/restart/text/text_summary"] == b"restart: after step 2"


def test_a_rollback_makes_the_steps_before_it_void(tmp_path: Path) -> None:
    metrics = Metrics([TensorBoard(tmp_path, "")])
    for step, loss in ((0, 5.0), (1, 4.0), (2, 9.0), (1, 3.5)):
        if loss == 3.5:
            metrics.event("rollback", 1, "to step 1")
        metrics.record("loss", loss)
        metrics.end_step(step)
    metrics.close()
    assert [(e.step, e.value) for e in read_back(tmp_path).Scalars("loss")] == [(1, 5.0), (2, 3.5)]


def test_a_full_disk_costs_values_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda line, file: said.append(line))
    metrics = Metrics([TensorBoard(tmp_path, "")])

    def record(steps: range) -> None:
        for step in steps:
            metrics.record("loss", float(step))
            metrics.end_step(step)

    with largest_file(1000):
        record(range(50))
    record(range(50, 52))  # there is room again
    metrics.close()
    assert said == [f"cannot write {tmp_path / FOLDER}: File too large; training on"]
    steps = [event.step for event in read_back(tmp_path).Scalars("loss")]
    assert steps[:2] == [1, 2] and steps[-2:] == [51, 52] and 5 < len(steps) < 50


def test_a_folder_that_cannot_be_made_costs_values_and_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    metrics = Metrics([TensorBoard(tmp_path, "")])
    metrics.record("loss", 1.0)
    metrics.end_step(0)
    metrics.close()
    line = f"cannot write {tmp_path / FOLDER}: File exists; training on\n"
    assert capsys.readouterr().err == line


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"^metrics\.tensorboard: .*pip install 'tensorboard"):
        require_packages(MetricsConfig(tensorboard=True))
