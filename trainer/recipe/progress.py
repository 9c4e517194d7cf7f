"""What a run has done so far: all that its recipe and its data depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["steps", "tokens"]


@dataclass(frozen=True)
class Progress:
    """step: steps finished. sequences: of the training text that were consumed, which is where the
    next step starts to read. tokens: sequences x sequence length."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0

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
