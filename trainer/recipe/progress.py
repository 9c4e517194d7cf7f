"""What a run has done so far: all that its recipe and its data depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["steps", "tokens"]


@dataclass(frozen=True)
class Progress:
    """step: steps finished. sequences: of the training text that were consumed. tokens: sequences x
    sequence length. passed_over: sequences of the text beside these, which a rollback has left out.

    Of all steps, those of before a rollback too: skipped: steps that changed nothing; spikes: of
    the loss; rollbacks: to a checkpoint. skipped_in_a_row: up to now. losses: of the last steps,
    the oldest first, which a spike is measured by.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    passed_over: int = 0
    skipped: int = 0
    spikes: int = 0
    rollbacks: int = 0
    skipped_in_a_row: int = 0
    losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))  # JSON has lists only

    @property
    def position(self) -> int:
        """The sequence of the training text that the next step starts to read at."""
        return self.sequences + self.passed_over

    def after_step(self, sequences: int, sequence_length: int) -> Progress:
        """With one more step, of so many sequences."""
        return self.after_steps(1, sequences, sequence_length)

    def after_steps(self, steps: int, sequences: int, sequence_length: int) -> Progress:
        """With so many more steps, of `sequences` each."""
        return replace(
            self,
            step=self.step + steps,
            sequences=self.sequences + steps * sequences,
            tokens=self.tokens + steps * sequences * sequence_length,
        )

    def count(self, unit: Unit) -> int:
        return self.step if unit == "steps" else self.tokens


@dataclass(frozen=True)
class Point:
    """So many steps or tokens into a run."""

    count: int
    unit: Unit

    def reached(self, progress: Progress) -> bool:
        return progress.count(self.unit) >= self.count
