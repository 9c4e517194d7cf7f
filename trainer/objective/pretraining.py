"""Pre-training: cross-entropy of the next token, and of further ones by multi-token prediction.

The total loss is the mean cross-entropy over the target tokens of the global batch, plus the MTP
modules' mean cross-entropies times weight / depth (DeepSeek-V3, arXiv 2412.19437, eq. 24 and 25).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from parallel.context.chunks import Chunks
from parallel.ops.cross_entropy import IGNORED
from parallel.ops.ops import Linear
from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from trainer.model.part import ModelPart
from trainer.model.places import Places
from trainer.model.stage import MicroBatch
from trainer.recipe.recipe import StepRecipe

TOKENS = "tokens"
"""A field: windows [B, S + 1 + MTP depth] of tokens."""
DOCUMENTS = "documents"
"""A field beside it where documents are kept apart: the number of each token's document."""
PADDING = IGNORED
"""Stands in for a token that is not a target."""
LOSS = "loss"


@dataclass(frozen=True)
class Pretraining:
    """sequence_length: S, targets of each sequence. mtp_depth: number of MTP modules. apart: no
    document sees another, nor is a token a target from within another. chunks: where sequences are
    shared by ranks, which of them are here: micro-batches have rows of these."""

    sequence_length: int
    mtp_depth: int
    apart: bool = False
    chunks: Chunks | None = None

    @property
    def losses(self) -> tuple[str, ...]:
        return (LOSS, *map(_mtp_loss, range(1, self.mtp_depth + 1)))

    @property
    def padding(self) -> Mapping[str, int]:
        return {TOKENS: PADDING, DOCUMENTS: 0}

    @property
    def varies(self) -> bool:
        return self.apart

    def targets(self, sequences: int) -> dict[str, int]:
        return dict.fromkeys(self.losses, sequences * self.sequence_length)

    def count(self, micro_batch: MicroBatch) -> dict[str, int]:
        return {
            name: int((self._target(micro_batch, depth) != PADDING).sum())
            for depth, name in enumerate(self.losses)
        }

    def means(self, sums: Mapping[str, float], targets: Mapping[str, int]) -> dict[str, float]:
        """In nats per target token."""
        return {name: sums[name] / max(1, targets[name]) for name in self.losses}

    def weights(self, step: StepRecipe, targets: Mapping[str, int]) -> dict[str, float]:
        mtp = step.mtp_weight / max(1, self.mtp_depth)
        return {
            name: (1.0 if name == LOSS else mtp) / max(1, targets[name]) for name in self.losses
        }

    def tokens(self, micro_batch: MicroBatch) -> Tensor:
        return self._shifted(micro_batch, 0).clamp(min=0)

    def places(self, micro_batch: MicroBatch) -> Places | None:
        if self.chunks is not None:
            return Places.of_chunks(self.chunks, micro_batch[TOKENS])
        if not self.apart:
            return None
        return Places.of_documents(micro_batch[DOCUMENTS][:, : self.sequence_length])

    def compute(
        self, tape: Tape, part: ModelPart, x_TD: Tensor, micro_batch: MicroBatch
    ) -> Pass[None]:
        """The next-token loss, then each MTP module's, one token further on than the last."""
        recompute = part.options.recompute.norm
        tape.layer = "head"
        hidden_TD = tape.compute(part.norm.forward, x_TD, recompute=recompute)
        target_T, places = self._target(micro_batch, 0), self.places(micro_batch)
        tape.add_loss(LOSS, cross_entropy(hidden_TD, target_T, part.lm_head))
        for depth, module in enumerate(part.mtp_modules(), start=1):
            tape.layer = f"MTP {depth}"
            known_T = self._shifted(micro_batch, depth).clamp(min=0)
            x_TD = yield from module.predict(tape, hidden_TD, known_T, part.embed_tokens, places)
            hidden_TD = tape.compute(module.shared_head.norm.forward, x_TD, recompute=recompute)
            target_T = self._target(micro_batch, depth)
            tape.add_loss(_mtp_loss(depth), cross_entropy(hidden_TD, target_T, part.lm_head))

    def _target(self, micro_batch: MicroBatch, depth: int) -> Tensor:
        """Of the next token, or of MTP module `depth` (from 1), flat [B x S]; PADDING for none."""
        target_T = self._shifted(micro_batch, depth + 1)
        if not self.apart:
            return target_T
        here_T, there_T = (self._shifted(micro_batch, k, DOCUMENTS) for k in (0, depth + 1))
        return target_T.masked_fill(here_T != there_T, PADDING)

    def _shifted(self, micro_batch: MicroBatch, shift: int, field: str = TOKENS) -> Tensor:
        """The S values of each sequence, or row, from position `shift` on, flat [B x S]."""
        length = self.sequence_length if self.chunks is None else self.chunks.chunk
        return micro_batch[field][:, shift : shift + length].flatten()


def cross_entropy(normed_TD: Tensor, target_T: Tensor, head: Linear) -> Tensor:
    """Cross-entropy of the head's logits, summed over tokens, in nats."""
    return head.ops.cross_entropy(normed_TD, head.weight, target_T)


def _mtp_loss(depth: int) -> str:
    return f"mtp_{depth}_loss"
