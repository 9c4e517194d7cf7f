"""Schedules by name. A generator is a pure function of (ranks, micro_batches) -> Schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.generators.dualpipe import dualpipe, dualpipev
from parallel.schedule.generators.forward_only import forward_only
from parallel.schedule.generators.gpipe import gpipe
from parallel.schedule.generators.interleaved import interleaved
from parallel.schedule.generators.one_f_one_b import one_f_one_b
from parallel.schedule.generators.zbv import zbv
from parallel.schedule.generators.zero_bubble import zb_h1, zb_h2
from parallel.schedule.table import Schedule, ScheduleError

__all__ = ["GENERATORS", "forward_only", "generate"]

GENERATORS: Mapping[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "zb-h2": zb_h2,
    "zbv": zbv,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}


@collector_paused()
def generate(name: str, ranks: int, micro_batches: int) -> Schedule:
    """The schedule called `name`; micro_batches counts those of all flows together.

    Raises ScheduleError, in one line that names the config key and what would be right, where
    there is no such schedule or it does not support these numbers.
    """
    if name not in GENERATORS:
        raise ScheduleError(
            f"pipeline.schedule: no schedule is called {name!r}; there are {', '.join(GENERATORS)}"
        )
    return GENERATORS[name](ranks, micro_batches)
