"""What a schedule is requested by: a name, ranks and micro-batches; their limits and errors.

A config has keys for these and a command has options. An error has neutral words for them; `worded`
puts in the words of the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from parallel.schedule.table import ScheduleError

MOST_RANKS = 4096
# Of ranks x micro-batches: up to 1.6 million actions, about a minute to check and simulate.
MOST_CELLS = 2**18


class Setting(Enum):
    """One of the things that a schedule is requested by; the value is its neutral word."""

    SCHEDULE = "schedule"
    RANKS = "ranks"
    MICRO_BATCHES = "micro-batches"


class SettingError(ScheduleError):
    """Settings that no table can be made for.

    parts: of the line; a Setting stands for the word, key or option that names it.
    """

    def __init__(self, *parts: str | Setting) -> None:
        super().__init__(*parts)
        self.parts = parts

    def __str__(self) -> str:
        return self.worded({setting: setting.value for setting in Setting})

    def worded(self, names: Mapping[Setting, str]) -> str:
        """The line, each setting called by its name."""
        return "".join(names[part] if isinstance(part, Setting) else part for part in self.parts)


def require_counts(name: str, ranks: int, micro_batches: int) -> None:
    """Raise SettingError unless there are at least one rank and one micro-batch, and few enough
    that the table does not take minutes to make."""
    for setting, count in ((Setting.RANKS, ranks), (Setting.MICRO_BATCHES, micro_batches)):
        if count < 1:
            raise SettingError(f"{name} needs ", setting, f" >= 1, got {count}")
    if ranks > MOST_RANKS:
        raise SettingError(Setting.RANKS, f" must be at most {MOST_RANKS}, got {ranks}")
    if ranks * micro_batches > MOST_CELLS:
        raise SettingError(
            Setting.RANKS, " x ", Setting.MICRO_BATCHES, f" must be at most {MOST_CELLS}, got "
            f"{ranks} x {micro_batches}: set ", Setting.MICRO_BATCHES,
            f" to {MOST_CELLS // ranks} or less",
        )  # fmt: skip
