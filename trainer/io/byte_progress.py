"""How far reading or writing weights is: bytes, rate and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from trainer.io.terminal import plain_console

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal


@contextmanager
def byte_progress(what: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A function to call repeatedly with (done, total) in bytes; `what` says what is being done.

    A bar on a terminal, else a line now and then, none where it is over sooner; on stderr, since
    stdout is for results. quiet: say nothing.
    """
    console = plain_console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    bar = Progress(*columns, console=console, transient=True, disable=hidden)
    task = bar.add_task(what, total=None)
    started = said = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal said
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and now - said > _LINE_EVERY:
            seconds, said = now - started, now
            left = seconds / max(done, 1) * (total - done)
            rate = f"{done / seconds / 1e6:,.0f} MB/s"
            sizes = f"{done / 1e9:,.3f} of {total / 1e9:,.3f} GB"
            console.print(f"{what}: {sizes}, {rate}, {left:,.0f} s left")

    with bar:
        yield show
