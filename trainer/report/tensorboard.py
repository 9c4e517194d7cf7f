"""TensorBoard's event files, RUN/tensorboard; its packages are imported only where a run asks.

Written here rather than by SummaryWriter, whose thread ends with a traceback on a full disk, and
keeps the last minutes of a run that dies.
"""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import RunError
from trainer.report.events import Event, name_of
from trainer.report.metrics import Value, Values

FOLDER = "tensorboard"


def require_installed() -> None:
    """Raise RunError unless there is a package to import."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError(
            "metrics.tensorboard: TensorBoard is not installed: pip install 'tensorboard>=2.18', "
            "or set metrics.tensorboard to false"
        )


class TensorBoard:
    """A sink that writes each step, its number counted from 1, as it comes."""

    def __init__(self, folder: Path, resolved: str, done: int = 0) -> None:
        """Make an event file of a run that goes on after `done` steps: of later steps, what earlier
        files have no longer counts. resolved: the config, YAML. Raises RunError where the package
        is not installed."""
        require_installed()
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._protos, self._summary, self._make = event_pb2, summary_pb2.Summary, summary
        self._records = RecordWriter
        self._folder, self._warned = folder, False
        self._file: Any = None
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
            self._file = open(folder / FOLDER / name, "xb", buffering=0)  # noqa: SIM115
        except OSError as error:
            self._warn(error)
            return
        self._put(file_version="brain.Event:2")
        if done:
            self._make_void(done)
        self._put(step=done, summary=summary.text("config", f"```yaml\n{resolved}\n```"))

    def write(self, step: int, values: Values) -> None:
        """A file that cannot be written (a full disk) costs values, with a warning."""
        for name, recorded in values.items():
            for summary in self._summaries(name, recorded.value):
                self._put(step=step + 1, summary=summary)

    def event(self, event: Event) -> None:
        """A text and a point of a chart, each by kind."""
        if event.kind == "rollback":
            self._make_void(event.step)
        tag = f"events/{event.kind}"
        text = self._make.text(f"{tag}/text", f"{name_of(event.kind)}: {event.text}")
        for summary in (self._make.scalar(tag, 1.0), text):
            self._put(step=event.step + 1, summary=summary)

    def close(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            self._warn(error)

    def _summaries(self, name: str, value: Value) -> list[Any]:
        """Text as it is, each row of a matrix as a histogram with a bin for each number."""
        if isinstance(value, Path):
            return self._picture(name, self._folder / value)
        if isinstance(value, str):
            return [self._make.text(name, f"```\n{value}\n```")]
        if not isinstance(value, list):
            return [self._make.scalar(name, value)]
        return [self._histogram(f"{name}/{i}", np.array(row)) for i, row in enumerate(value)]

    def _histogram(self, name: str, row_E: np.ndarray) -> Any:
        places_E = np.arange(row_E.size)
        total, first, second = (float(row_E @ places_E**power) for power in (0, 1, 2))
        ends = (places_E + 1).tolist()
        return self._make.histogram_raw(
            name, 0, row_E.size, total, first, second, ends, row_E.tolist()
        )

    def _picture(self, name: str, png: Path) -> list[Any]:
        try:
            content = png.read_bytes()
        except OSError as error:
            self._warn(error)
            return []
        width, height = struct.unpack(">II", content[16:24])
        image = self._summary.Image(
            encoded_image_string=content, width=width, height=height, colorspace=4
        )
        return [self._summary(value=[self._summary.Value(tag=name, image=image)])]

    def _make_void(self, step: int) -> None:
        """From this step on, what was written before no longer counts."""
        log = self._protos.SessionLog
        self._put(step=step + 1, session_log=log(status=log.START))

    def _put(self, **what: Any) -> None:
        if self._file is None:
            return
        record = io.BytesIO()
        event = self._protos.Event(wall_time=time.time(), **what)
        self._records(record).write(event.SerializeToString())
        left = record.getbuffer()
        start = self._file.tell()
        try:  # at once: a run that dies keeps all steps that it finished
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._warn(error)
            with suppress(OSError):  # readers stop at a record that is not whole
                self._file.truncate(start)
                self._file.seek(start)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            where = error.filename or self._folder / FOLDER
            print(f"cannot write {where}: {error.strerror}; training on", file=sys.stderr)
        self._warned = True
