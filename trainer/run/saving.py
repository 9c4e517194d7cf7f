"""When a run saves checkpoints, and what is said of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.filesize import decimal

from trainer.checkpoint.state.checkpoints import Checkpoints
from trainer.checkpoint.state.write import Outcome
from trainer.recipe.progress import Progress
from trainer.report.console import RunConsole
from trainer.report.metrics import Metrics

_POLL = 0.2  # seconds


@dataclass
class Saving:
    """Saves as checkpoint.every says; each rank has one. Failures never end training.

    pause: seconds that training waited for the last one. said: what has become of it.
    """

    checkpoints: Checkpoints
    metrics: Metrics
    console: RunConsole
    pause: float = 0.0
    said: str = "no checkpoint"

    def after_step(self, progress: Progress, last: bool) -> None:
        """Report what has been written meanwhile, and start the next if one is due, as is always
        so after the last step."""
        self._report()
        if last or self.checkpoints.is_due(progress.step):
            self._start(progress)

    def now(self, progress: Progress) -> str:
        """Save, and wait until it is written; what has become of it."""
        self._start(progress)
        return self.finish()

    def finish(self) -> str:
        """Wait until what is being written is there; what has become of the last one."""
        if not self.checkpoints.wait(_POLL):
            with self.console.bytes("saving a checkpoint") as progress:
                while not self.checkpoints.wait(_POLL):
                    progress(*self.checkpoints.written())
        self._report()
        return self.said

    def _start(self, progress: Progress) -> None:
        start = time.perf_counter()
        self.checkpoints.wait()
        self._report()  # of the one before
        if self.checkpoints.save(progress):
            self.pause = time.perf_counter() - start
            self.metrics.record("checkpoint_pause", self.pause, "sum")

    def _report(self) -> None:
        if (outcome := self.checkpoints.outcome()) is None:
            return
        if outcome.error is None:
            self.said = f"checkpoint in {self.checkpoints.path(outcome.step)}"
            self.metrics.event("checkpoint", outcome.step - 1, self._details(outcome))
        else:
            self.said = f"no checkpoint of step {outcome.step}: {outcome.error}"
            self.metrics.event("checkpoint_failed", outcome.step - 1, outcome.error)

    def _details(self, outcome: Outcome) -> str:
        rate = decimal(int(outcome.nbytes / max(outcome.seconds, 1e-9)))
        text = (
            f"{decimal(outcome.nbytes)} in {outcome.seconds:.2f} s, {rate}/s; training waited "
            f"{self.pause:.2f} s"
        )
        return text + (f"; {outcome.warning}" if outcome.warning else "")
