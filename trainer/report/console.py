"""What a person sees of a run: its shape at the start, then a table of its steps, 80 wide."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import chop_cells
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from parallel.files.shown import printable
from trainer.config.schema import Config
from trainer.io.byte_progress import byte_progress
from trainer.io.terminal import plain_console
from trainer.recipe.recipe import Recipe
from trainer.report.events import Event
from trainer.report.metrics import Value, Values, Window
from trainer.report.step_table import StepTable

WIDTH = 80
_SWITCHED = {
    "sequences": "a batch of",
    "bias_gamma": "router gamma",
    "balance_alpha": "balance alpha",
    "mtp_weight": "MTP weight",
}


class RunConsole:
    """A sink that prints, and on a terminal a progress bar below. quiet: say nothing."""

    def __init__(self, config: Config, quiet: bool) -> None:
        self._plan, self._every = Recipe(config).plan, config.metrics.log_every
        self._steps = self._plan.end.step
        self._tokens_before: int | None = None
        self._recipe: dict[str, Value] = {}
        self._console = plain_console(quiet=quiet)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("step", total=self._steps, status="")
        self._table = StepTable(self._steps, config.model.mtp.depth)
        self._window = Window()
        self._start = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line. A console that cannot be written to falls silent; the run goes on."""
        text = printable(line).encode(self._console.encoding, "backslashreplace")
        try:
            self._console.print(text.decode(self._console.encoding))
        except (OSError, SystemExit) as error:  # rich leaves the process where nobody reads on
            self._fall_silent(error)

    def start(self, description: Sequence[str]) -> None:
        """Describe the run and its columns, and start the clock of the time left."""
        for line in [*description, self._table.legend()]:
            wrapper = textwrap.TextWrapper(
                WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
            for part in wrapper.wrap(line):
                self.say(part)
        self._start = time.monotonic()
        self._progress.start()

    def write(self, step: int, values: Values) -> None:
        """Show a finished step; every metrics.log_every steps the means since the last time."""
        done = step + 1
        left = self._time_left(step)
        self._window.add(values)
        means = self._window.reduced()
        self._progress.update(self._task, completed=done, status=self._table.status(means, left))
        if done == 1 or done % self._every == 0 or done == self._steps:
            for line in self._table.rows(done, means, left):
                self.say(line)
            self._window.empty()
            self._say_switched(done, values)
        self._say_validation(done, values)
        if "sample" in values:
            self._say_sample(done, str(values["sample"].value))

    def event(self, event: Event) -> None:
        self.say(event.line())

    def close(self) -> None:
        self._progress.stop()

    @contextmanager
    def bytes(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of reading or writing weights, before the first step or after the last."""
        self._progress.stop()  # two bars on one terminal would overwrite each other
        with byte_progress(what, quiet=self._console.quiet) as progress:
            yield progress

    def _say_switched(self, done: int, values: Values) -> None:
        """What the recipe has changed since the last row, beside the learning rate."""
        now = {name: values[name].value for name in _SWITCHED if name in values}
        said = [
            f"{_SWITCHED[name]} {value:g}"
            for name, value in now.items()
            if isinstance(value, int | float) and self._recipe.get(name, value) != value
        ]
        if said:
            self.say(f"step {done} has {', '.join(said)}")
        self._recipe = now

    def _time_left(self, step: int) -> float:
        """Seconds, as long per token as since the start of this process."""
        before, after = (self._plan.before_step(n).tokens for n in (step, step + 1))
        if self._tokens_before is None:
            self._tokens_before = before
        elapsed = time.monotonic() - self._start
        return elapsed / (after - self._tokens_before) * (self._plan.end.tokens - after)

    def _say_validation(self, done: int, values: Values) -> None:
        if "validation_loss" not in values:
            return
        said = f"validation loss {values['validation_loss'].value:.4f}"
        if "validation_bits_per_byte" in values:
            said += f", {values['validation_bits_per_byte'].value:.4f} bits per byte,"
        self.say(f"{said} after step {done}")
        if "validation_loss_ema" in values:
            loss = values["validation_loss_ema"].value
            self.say(f"validation loss {loss:.4f} of the averaged weights after step {done}")

    def _say_sample(self, done: int, text: str) -> None:
        self.say(f"sample after step {done}:")
        for line in text.split("\n"):
            for part in chop_cells(printable(line), WIDTH - 4) or [""]:
                self.say(f"  | {part}")

    def _fall_silent(self, error: BaseException) -> None:
        self._console.quiet = True
        self._progress.disable = True
        # What is left in the buffer must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        why = error.strerror if isinstance(error, OSError) else "nobody reads it"
        print(f"the console cannot be written ({why}); training on", file=sys.stderr)
