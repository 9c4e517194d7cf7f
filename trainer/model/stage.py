"""One stage's forward pass: the way of a token through the layers that a stage holds.

Everything the model computes is here and in the layers, written forward only; the tape gives the
backward, the executor the order.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from parallel.tape.passes import Pass
from parallel.tape.tape import Tape
from parallel.tape.weight_gradients import WeightGradients, embedding, linear
from trainer.config.schema import Config
from trainer.model.part import ModelPart
from trainer.model.partition import Partition

PADDING = -1


@dataclass(frozen=True)
class ModelStage:
    """Stage `index` of the model, on the parameters of `part`.

    The total loss is the mean cross-entropy over the target tokens of the global batch, plus
    MTP's mean cross-entropies times weight / depth (V3 eq. 24 and 25), plus the balance loss of
    the MoE layers; each term is divided by the size of the global batch here, so that gradients
    only ever need to be summed.
    """

    index: int
    part: ModelPart
    partition: Partition
    config: Config

    def forward(self, tape: Tape, x: Tensor | None, micro_batch: Tensor) -> Pass[Tensor | None]:
        """micro_batch: tokens [B, S + 1 + MTP depth]; -1 pads it, and is never a target. x, and the
        result: hidden state [B x S, D]; the first stage takes none, the last returns none."""
        if self.index == 0:
            tokens_T = self._tokens(micro_batch, 0).clamp(min=0)
            x = tape.compute(
                embedding, tokens_T, self.part.embed_tokens.weight, tape.weight_gradients
            )
        for layer in self.partition.stage_layers(self.index):
            x = yield from self.part.layers[str(layer)](tape, x)
        if self.index < self.partition.last or x is None:
            return x
        yield from self._losses(tape, x, micro_batch)
        return None

    def _losses(self, tape: Tape, x_TD: Tensor, micro_batch: Tensor) -> Pass[None]:
        """The next-token loss, then each MTP module's, one token further on than the last."""
        data, mtp = self.config.data, self.config.model.mtp
        per_token = 1.0 / (data.global_batch * data.sequence_length)
        recompute = self.config.recompute.norm
        hidden_TD = tape.compute(self.part.norm.forward, x_TD, recompute=recompute)
        self._add_loss(tape, "loss", hidden_TD, self._tokens(micro_batch, 1), per_token)
        for depth, layer in enumerate(self.partition.mtp_layers(), start=1):
            module = self.part.mtp_module(layer)
            known_T = self._tokens(micro_batch, depth).clamp(min=0)
            embed = self.part.embed_tokens.weight
            x_TD = yield from module.predict(tape, hidden_TD, known_T, embed)
            hidden_TD = tape.compute(module.shared_head.norm.forward, x_TD, recompute=recompute)
            target_T = self._tokens(micro_batch, depth + 1)
            weight = per_token * mtp.weight / mtp.depth
            self._add_loss(tape, f"mtp_{depth}", hidden_TD, target_T, weight)
        tape.release()

    def _add_loss(
        self, tape: Tape, name: str, normed_TD: Tensor, target_T: Tensor, weight: float
    ) -> None:
        head, queue = self.part.lm_head.weight, tape.weight_gradients
        loss = tape.compute(cross_entropy, normed_TD, target_T, head, queue)
        tape.add_loss(name, loss, weight)

    def _tokens(self, micro_batch: Tensor, shift: int) -> Tensor:
        """The S tokens of each sequence from position `shift` on, flat [B x S]."""
        return micro_batch[:, shift : shift + self.config.data.sequence_length].flatten()


def cross_entropy(
    normed_TD: Tensor, target_T: Tensor, head_VD: Tensor, queue: WeightGradients
) -> Tensor:
    """Cross-entropy of the head's logits, summed over tokens, in nats."""
    logits_TV = linear(normed_TD, head_VD, queue)
    return nn.functional.cross_entropy(logits_TV, target_T, ignore_index=PADDING, reduction="sum")
