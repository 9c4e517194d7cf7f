"""The largest gaps of a step: when nothing was computed, and what the rank was doing.

On a GPU, between kernels of any stream, but those that only wait; on a CPU, between operations of
torch on the thread that runs the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType

from trainer.bench.step_trace import profiled_step
from trainer.build.layout import Layout

LARGEST = 10
_WAITING = ("spin_kernel", "nccl", "Memcpy", "Memset")
_MILLISECONDS = 1e-3  # of the profiler's microseconds


@dataclass(frozen=True)
class Gap:
    """milliseconds: its length. start: since the first operation. during: the item and the move in
    whose ranges it begins. after: what ran before."""

    milliseconds: float
    start: float
    during: str
    after: str


@dataclass(frozen=True)
class Span:
    """On the profiler's clock."""

    start: float
    end: float
    name: str


def largest_gaps(layout: Layout) -> list[Gap]:
    """Of one more step, largest first. Collective."""
    events = profiled_step(layout).events()
    ranges = [_span(e) for e in events if e.is_user_annotation and e.device_type == DeviceType.CPU]
    if layout.device.type == "cuda":
        work = [
            _span(e)
            for e in events
            if e.device_type == DeviceType.CUDA and not e.name.startswith(_WAITING)
        ]
        ranges = [_span(e) for e in events if e.is_user_annotation]
    else:
        steps = {e.thread for e in events if e.is_user_annotation}
        work = [
            _span(e)
            for e in events
            if e.thread in steps and e.name.startswith("aten::") and _is_outermost(e)
        ]
    return gaps_between(work, ranges)[:LARGEST]


def gaps_between(work: Iterable[Span], ranges: Sequence[Span]) -> list[Gap]:
    """Largest first. ranges: of one thread, one inside the other; the innermost two are named."""
    found, last, first = [], None, 0.0
    for span in sorted(work, key=lambda span: span.start):
        if last is None:
            last, first = span, span.start
        elif span.start > last.end:
            within = [each for each in ranges if each.start <= last.end < each.end]
            within.sort(key=lambda each: each.start)
            found.append(
                Gap(
                    (span.start - last.end) * _MILLISECONDS,
                    (last.end - first) * _MILLISECONDS,
                    " / ".join(each.name for each in within[-2:]),
                    last.name,
                )
            )
            last = span
        elif span.end > last.end:
            last = span
    return sorted(found, key=lambda gap: gap.milliseconds, reverse=True)


def _span(event: Any) -> Span:
    return Span(event.time_range.start, event.time_range.end, event.name)


def _is_outermost(event: Any) -> bool:
    """Whether no operation of torch calls it."""
    parent = event.cpu_parent
    return parent is None or not parent.name.startswith("aten::")
