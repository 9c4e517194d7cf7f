"""Steps of a training run that are measured: what of their all-to-alls was hidden, a timeline.

Every `metrics.timeline_every` steps, by the host clock, so on the CPU only: on CUDA that sees
launches and not kernels. Memory is measured on any device.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from parallel.pipeline.executor import Executor
from parallel.ranks.together import gather
from parallel.schedule.table import Schedule
from parallel.study.measured import ItemClock, TimedItems, timeline_of
from parallel.study.timeline import Timeline
from parallel.study.trace import write_trace
from parallel.tape.recorder import Both, EventLog
from trainer.bench.exchange_times import StepTimes, Window, account, latest_starts, mean
from trainer.build.layout import Layout
from trainer.report.metrics import Metrics

FOLDER = Path("timelines")  # in the run folder


@dataclass
class _Watched:
    """What one rank saw of one step. executors: those that it may run, each with its clock."""

    clocks: list[tuple[Executor, ItemClock]]
    log: EventLog = field(default_factory=EventLog)
    start: float = 0.0
    window: Window | None = None

    def ran(self) -> tuple[Schedule, TimedItems] | None:
        """The table that was run, and its items by this rank's clock."""
        for executor, clock in self.clocks:
            if clock.items:
                return executor.schedule, clock.items
        return None


@dataclass
class StepMeter:
    """Measures steps. executors: all that may run a step. folder: of the run, on the first rank."""

    layout: Layout
    executors: Sequence[Executor]
    metrics: Metrics
    folder: Path | None
    _watched: _Watched | None = None
    _warned: bool = False

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Watch what runs within, if this step is one to measure. Collective."""
        every = self.layout.config.metrics.timeline_every
        self._watched = None
        if not (every and (step + 1) % every == 0 and self.layout.device.type == "cpu"):
            yield
            return
        watched = _Watched([(executor, ItemClock()) for executor in self.executors])
        gather(None)  # what a rank did since the last step is no part of this one
        watched.start, start = time.monotonic(), time.perf_counter()
        with _watching(watched):
            yield
        watched.window = Window("on", start, time.perf_counter())
        watched.log.settle()
        self._watched = watched

    def record(self, step: int, last: bool) -> None:
        """Record what was watched, and now and then the memory. last: of the run. Collective."""
        if self._watched is not None:
            self._record_watched(step, self._watched)
        every = self.layout.config.metrics.log_every
        if step == 0 or (step + 1) % every == 0 or last:
            peaks = gather(peak_memory(self.layout.device))
            self.metrics.record("peak_memory_gib", max(peaks) / 2**30, "max")
            self.metrics.record("peak_memory_rank", peaks.index(max(peaks)), "last")

    def _record_watched(self, step: int, watched: _Watched) -> None:
        times, ran = self._times(watched), watched.ran()
        in_picture = self.layout.data_rank == 0  # the pipeline of data rank 0, as tables have it
        everyone = gather((times, ran[1] if ran and in_picture else None, watched.start))
        if self.folder is None or ran is None:
            return
        if all(times is not None for times, _, _ in everyone):
            _record_times(self.metrics, mean([times for times, _, _ in everyone]))
        group = self.layout.mesh.pipeline_group(0)
        timeline = _timeline(ran[0], [everyone[rank][1:] for rank in group], self._one_machine)
        self.metrics.record("pipeline_idle", timeline.idle_fraction)
        try:
            self.metrics.record("timeline", _draw(timeline, self.folder, step), "last")
        except Exception as error:  # a picture never stops a run
            self._warn(error)

    def _times(self, watched: _Watched) -> StepTimes | None:
        """Of this rank; None where the events do not fit together, which it says."""
        events, window = watched.log.events, watched.window
        assert window is not None
        try:
            latest = latest_starts(self.layout.process, self.layout.mesh, events)
            return account(events, latest, [window], "on")
        except ValueError as error:
            self._warn(error)
            return None

    @property
    def _one_machine(self) -> bool:
        return self.layout.process.local_world == self.layout.process.world

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            why = " ".join(str(error).split())
            print(f"metrics.timeline_every: {why}; training on", file=sys.stderr)
        self._warned = True


def peak_memory(device: torch.device) -> float:
    """Bytes, at most, since the process started: of the tensors on a GPU; resident on the CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak * (1 if sys.platform == "darwin" else 1024))


@contextmanager
def _watching(watched: _Watched) -> Iterator[None]:
    """Executors note what they run, beside whoever has them do so already."""
    before = [(executor.recorder, executor.on_item) for executor, _ in watched.clocks]
    for executor, clock in watched.clocks:
        executor.recorder = Both(executor.recorder, watched.log)
        executor.on_item = clock.note
    try:
        yield
    finally:
        for (executor, _), (recorder, on_item) in zip(watched.clocks, before):
            executor.recorder, executor.on_item = recorder, on_item


def _record_times(metrics: Metrics, times: StepTimes) -> None:
    """Means over the ranks."""
    exchanges = times.total("pairs", "lone")
    for name, share in (
        ("all_to_all_hidden", exchanges.hidden),
        ("all_to_all_hidden_transfer", exchanges.hidden_transfer),
    ):
        if share is not None:
            metrics.record(name, share)
    metrics.record("all_to_all_waited_seconds", exchanges.waited)
    metrics.record("pipeline_waited_seconds", sum(times.messages.values()))


def _timeline(
    schedule: Schedule, ranks: Sequence[tuple[TimedItems, float]], one_clock: bool
) -> Timeline:
    """Of (items, start of the step) by pipeline rank, from the first start on. Without one clock,
    each rank's items count from its own start: the ranks have just left the same collective."""
    first = min(start for _, start in ranks)
    by_rank = []
    for items, start in ranks:
        origin = first if one_clock else start
        by_rank.append([(item, a - origin, b - origin) for item, a, b in items])
    return timeline_of(schedule, by_rank)


def _draw(timeline: Timeline, folder: Path, step: int) -> Path:
    """Draw it and write it for Perfetto; the picture's path in the run folder."""
    from parallel.study.draw import save  # slow, and a run may do without

    name = FOLDER / f"step-{step + 1}.png"
    save(timeline, folder / name)
    write_trace({f"step {step + 1}": timeline}, folder / name.with_suffix(".trace.json"))
    return name
