"""Schedules by name. A generator is a pure function of (ranks, micro_batches) -> Schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from parallel.files.shown import shown
from parallel.schedule.cycle_collector import collector_paused
from parallel.schedule.generators.dualpipe import dualpipe, dualpipev
from parallel.schedule.generators.forward_only import forward_only
from parallel.schedule.generators.gpipe import gpipe
from parallel.schedule.generators.interleaved import interleaved
from parallel.schedule.generators.one_f_one_b import one_f_one_b
from parallel.schedule.generators.zbv import zbv
from parallel.schedule.generators.zero_bubble import zb_h1, zb_h2
from parallel.schedule.settings import Setting, SettingError
from parallel.schedule.table import Schedule

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

    Raises SettingError, in one line that says what would be right, where there is no such schedule
    or it does not support these numbers.
    """
    if name not in GENERATORS:
        there_are = f": no schedule is called {shown(name)}; there are {', '.join(GENERATORS)}"
        raise SettingError(Setting.SCHEDULE, there_are)
    return GENERATORS[name](ranks, micro_batches)
