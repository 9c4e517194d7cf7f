"""Where the host waits for the device, with the line of the source that makes it wait."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.dry.record import HostWait, Record, Where

_ROOT = Path(__file__).parent.parent.parent
_NAMED = ("parallel/", "trainer/")
_OURS = "trainer/dry/"


class HostWaits:
    """Counts into a record."""

    def __init__(self, record: Record) -> None:
        self._record, self._last = record, ("", 0)

    def count(self, what: str, where: Where) -> None:
        """One more. Numbers of one list, read one after the other, are one."""
        now = f"{what} {line()}", self._record.operations
        (last, operation), self._last = self._last, now
        if what == "item" and (last, operation + 1) == now:
            return
        wait = HostWait(what, where._replace(item=0), line())
        self._record.waits[wait] = self._record.waits.get(wait, 0) + 1


def line() -> str:
    """File and number of the innermost line of the product that is running."""
    frame = sys._getframe(1)
    while True:
        path = frame.f_code.co_filename.removeprefix(f"{_ROOT}/")
        if path.startswith(_NAMED) and not path.startswith(_OURS):
            return f"{path}:{frame.f_lineno}"
        if frame.f_back is None:
            return ""
        frame = frame.f_back
