"""The next token of a text, chosen greedily by the stages that are being trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.ops import Linear
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.part import ModelPart
from trainer.model.stage import MicroBatch
from trainer.objective.pretraining import TOKENS

LAST = "last"
"""A field beside TOKENS [B, S]: [B], the position of each text's last token, -1 for no text."""
NEXT_TOKEN = "next_token"
"""The tally that has the answer: the sum over all texts, so at most one should be asked for."""


@dataclass(frozen=True)
class NextToken:
    """vocabulary: only tokens below it are chosen."""

    vocabulary: int

    def tokens(self, micro_batch: MicroBatch) -> Tensor:
        return micro_batch[TOKENS].flatten()

    def places(self, micro_batch: MicroBatch) -> None:
        return None

    def compute(
        self, tape: Tape, part: ModelPart, x_TD: Tensor, micro_batch: MicroBatch
    ) -> Pass[None]:
        normed_TD = part.norm(x_TD)
        shape, last_B = micro_batch[TOKENS].shape, micro_batch[LAST]
        chosen = self.choose(normed_TD.unflatten(0, shape), last_B, part.lm_head)
        tape.add_tally(NEXT_TOKEN, chosen)
        yield from ()

    def choose(self, normed_BSD: Tensor, last_B: Tensor, head: Linear) -> Tensor:
        """The most likely token after each text, summed over texts."""
        rows = torch.arange(len(last_B), device=last_B.device)
        logits_BV = head(normed_BSD[rows, last_B.clamp(min=0)])[:, : self.vocabulary]
        return logits_BV.argmax(-1).masked_fill(last_B < 0, 0).sum()
