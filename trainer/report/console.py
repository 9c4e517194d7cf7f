"""What a person sees of a run: its shape at the start, progress with rate and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from parallel.files.shown import printable
from trainer.build.layout import Layout
from trainer.config.schema import Config
from trainer.io.byte_progress import byte_progress
from trainer.io.terminal import plain_console
from trainer.report.metrics import Row


class RunConsole:
    """Lines for a log and, on a terminal, a progress bar below them. quiet: say nothing."""

    def __init__(self, config: Config, quiet: bool) -> None:
        self._config = config
        self._console = plain_console(quiet=quiet)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("step", total=config.run.steps, status="")
        self._begin = time.monotonic()

    def say(self, line: str) -> None:
        self._console.print(printable(line))

    def begin(self, layout: Layout, parameters: int, activated: int, corpus: str) -> None:
        """Describe the run, and start the clock of the time left."""
        c, schedule = self._config, layout.schedule
        self.say(
            f"{c.run.name}: {parameters / 1e6:.2f}M parameters, {activated / 1e6:.2f}M activated a "
            f"token; {c.precision.parameters} on {layout.device.type}"
        )
        self.say(
            f"mesh: {layout.mesh.world} process{'es' * (layout.mesh.world > 1)} = "
            f"pipeline {layout.mesh.pipeline} x expert_data "
            f"{layout.mesh.expert_data} x expert {layout.mesh.expert}; {schedule.name}, "
            f"{schedule.micro_batches} micro-batches of {layout.sequences} x "
            f"{c.data.sequence_length} tokens, overlap {'on' if c.pipeline.overlap else 'off'}"
        )
        self.say(f"data: {corpus}")
        self._begin = time.monotonic()
        self._progress.start()

    def step(self, values: Row) -> None:
        """Show a step that has been done; a line of it each metrics.log_every steps."""
        done, steps = int(values["step"]) + 1, self._config.run.steps
        elapsed = time.monotonic() - self._begin
        left = _clock(elapsed / done * (steps - done))
        rate = f"{values['tokens_per_second']:,.0f} tokens/s"
        self._progress.update(
            self._task, completed=done, status=f"loss {values['loss']:.3f}  {rate}  {left} left"
        )
        if done == 1 or done % self._config.metrics.log_every == 0 or done == steps:
            mtp = "".join(
                f"  mtp {value:.4f}" for name, value in values.items() if name.startswith("mtp_")
            )
            self.say(
                f"step {done:>{len(str(steps))}}/{steps}  loss {values['loss']:.4f}{mtp}  "
                f"norm {values['gradient_norm']:.2f}  lr {values['learning_rate']:.1e}  "
                f"load max {values['load_max']:.2f}x  {rate}  {left} left"
            )

    @contextmanager
    def bytes(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of reading or writing weights, before the first step or behind the last."""
        self._progress.stop()  # two bars on one terminal would overwrite each other
        with byte_progress(what, quiet=self._console.quiet) as progress:
            yield progress

    def end(self) -> None:
        self._progress.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
