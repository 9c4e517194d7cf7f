"""A step in torch's profiler, for Perfetto (ui.perfetto.dev): kernels and operations of a rank in
named ranges, the items of the table outside and what their passes do inside."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from parallel.files.outputs import write_file
from parallel.ranks.together import together
from trainer.bench.throughput import now, random_parts
from trainer.build.layout import Layout
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer


def write_step_trace(layout: Layout, path: Path) -> None:
    """Take one more step, and write this rank's trace. Collective. Raises WriteError, or PeerError
    where that of another rank cannot be written."""
    profiled = profiled_step(layout)
    together(lambda: _write(profiled, path))


def profiled_step(layout: Layout) -> profile:
    """One more step. Collective."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports its own start and stop
    kinds = [ProfilerActivity.CPU]
    if layout.device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    ranges = Ranges()
    trainer, parts = Trainer(layout, ranges), random_parts(layout, 0)
    with profile(activities=kinds) as profiled:
        trainer.step(Progress(), parts.__getitem__)
        ranges.close()
        now(layout.device)
    return profiled


def _write(profiled: profile, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / path.name  # compressed where the name ends in .gz
        profiled.export_chrome_trace(str(written))
        write_file(path, written.read_bytes())


class Ranges:
    """A recorder that makes every event a range of the profiler."""

    def __init__(self) -> None:
        self._open: AbstractContextManager[object] | None = None

    def note(self, doing: str) -> None:
        """One range ends where the next begins."""
        self.close()
        self._open = record_function(doing)
        self._open.__enter__()

    def span(
        self, label: str, what: str, name: str, layer: str = ""
    ) -> AbstractContextManager[None]:
        return record_function(f"{label}: {what} {name} {layer}".rstrip())

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        return None

    def close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
