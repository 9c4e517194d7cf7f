"""What a run has done so far: all that its recipe and its data depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Progress:
    """step: steps finished. sequences: of the training text that were consumed, which is where the
    next step starts to read. tokens: sequences x sequence length."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0

    def after_step(self, sequences: int, sequence_length: int) -> Progress:
        """With one more step, of so many sequences."""
        return replace(
            self,
            step=self.step + 1,
            sequences=self.sequences + sequences,
            tokens=self.tokens + sequences * sequence_length,
        )
