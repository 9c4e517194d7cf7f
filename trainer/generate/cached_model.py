"""The whole model on one process, token after token: what it has read is in its caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.ops.precision import Precision
from trainer.config.schema import ModelConfig
from trainer.generate.cached_attention import CachedMLA
from trainer.generate.few_tokens import FewTokenNorm, for_few_tokens
from trainer.generate.inference_ops import InferenceOps
from trainer.generate.latent_cache import LatentCaches, LayerCache
from trainer.model.part import ModelPart
from trainer.model.rope import rotations
from trainer.model.whole import WholeModel, whole_model

# Prompts are read this many tokens at a time, or fewer where attention's scores would be more
# numbers than this.
PROMPT_CHUNK = 512
SCORES = 1 << 25


def cached_part(model: ModelConfig, precision: Precision) -> ModelPart:
    """All parameters of `model`, unset, with attention over caches."""
    ops = InferenceOps(precision)
    # Sequences of one token, so that any number of tokens is a number of sequences.
    part = whole_model(model, ops, sequence_length=1, attention=CachedMLA)
    for_few_tokens(part, ops)
    # Rows are looked up, not multiplied with.
    embedding_VD = torch.empty(part.embed_tokens.weight.shape, dtype=precision.parameters)
    part.embed_tokens.weight = nn.Parameter(embedding_VD, requires_grad=False)
    return part


@dataclass(frozen=True)
class CachedModel:
    """Texts in a model; `start_texts` makes it.

    caches: of the model's layers, then, of depth k, that of MTP module k. vocabulary: tokens
    0 .. vocabulary - 1 may be chosen; further rows of a head are padding and have no text.
    """

    whole: WholeModel
    caches: tuple[LatentCaches, ...]
    vocabulary: int

    @property
    def slots(self) -> int:
        """How many texts there is room for."""
        return self.caches[0].slots

    @property
    def positions(self) -> int:
        """How many tokens of each."""
        return self.caches[0].positions

    @property
    def length(self) -> int:
        """Tokens of the first text that the model has read; its MTP modules may lag."""
        return self.caches[0].lengths[0]

    @property
    def mtp_depth(self) -> int:
        return len(self.caches) - 1

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[Sequence[int]], first: int = 0) -> Tensor:
        """Read more tokens of the texts from slot `first` on: the hidden states of all, end to end,
        after the final norm, [T, D]."""
        self.caches[0].begin([len(each) for each in tokens], first)
        return self.whole.hidden(self._tensor([token for each in tokens for token in each]))

    def read(
        self, prompts: Sequence[Sequence[int]], first: int = 0
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """Read prompts of any length into the slots from `first` on, in passes that bound the
        memory: of each pass the first prompt's index, how many tokens of it and of the next ones
        are read, and their hidden states."""
        scores_per_token = self.whole.part.options.model.attention.heads * self.positions
        most = max(1, min(PROMPT_CHUNK, SCORES // scores_per_token))
        for index, pieces in _pieces(prompts, most):
            yield index, [len(piece) for piece in pieces], self.hidden(pieces, first + index)

    @torch.inference_mode()
    def mtp_hidden(self, depth: int, hidden_TD: Tensor, tokens: Sequence[int]) -> Tensor:
        """Let MTP module `depth`, from 1, read more tokens of the first text; its arguments are
        those of WholeModel's."""
        self.caches[depth].begin([len(tokens)])
        return self.whole.mtp_hidden(depth, hidden_TD, self._tensor(tokens))

    @torch.inference_mode()
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, vocabulary] of hidden states of any depth."""
        return self.whole.logits(hidden_TD)[:, : self.vocabulary]

    def truncate(self, length: int, depth: int = 0) -> None:
        """Let the model (MTP module `depth`) forget all but `length` tokens of the first text."""
        self.caches[depth].truncate(length)

    @torch.inference_mode()
    def drop(self, slot: int, last: int) -> None:
        """Forget the text of a slot, and put that of slot `last` there."""
        if slot != last:
            self.caches[0].move(last, slot)
        self.caches[0].truncate(0, last)

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, device=self.whole.part.embed_tokens.weight.device)


def _pieces(
    prompts: Sequence[Sequence[int]], most: int
) -> Iterator[tuple[int, list[Sequence[int]]]]:
    """Prompts in order, cut into passes of `most` tokens: the number of a pass's first prompt, and
    its tokens, one list for each prompt."""
    first, pieces, room = 0, list[Sequence[int]](), most
    for number, prompt in enumerate(prompts):
        start = 0
        while start < len(prompt):
            if not pieces:
                first = number
            pieces.append(prompt[start : start + room])
            start, room = start + len(pieces[-1]), room - len(pieces[-1])
            if not room:
                yield first, pieces
                pieces, room = [], most
    if pieces:
        yield first, pieces


def start_texts(
    part: ModelPart,
    model: ModelConfig,
    positions: int,
    slots: int = 1,
    vocabulary: int | None = None,
) -> CachedModel:
    """Room for `slots` texts of up to `positions` tokens in `part`, made by `cached_part`.

    They take the place of the texts before, which cannot be continued. vocabulary: all tokens
    of the model, or only the first ones. Memory: slots x (layers + MTP modules) x positions x
    (C + R) numbers, touched as texts grow.
    """
    weight, c = part.embed_tokens.weight, model.attention
    cos_PR, sin_PR = (part.options.ops.accurate(table) for table in rotations(positions, c))
    rotation_PR = torch.complex(cos_PR, sin_PR).to(weight.device)

    def caches(layers: Sequence[int]) -> LatentCaches:
        shape = (slots, positions, c.kv_lora_rank + c.rope_head_dim)
        made = LatentCaches([rotation_PR.real.new_empty(shape) for _ in layers], rotation_PR)
        for index, layer in enumerate(layers):
            attention = part.layers[str(layer)].self_attn
            assert isinstance(attention, CachedMLA)
            attention.cache = LayerCache(made, index)
        return made

    for norm in part.modules():
        if isinstance(norm, FewTokenNorm):
            norm.prepare()
    modules = [[model.layers + module] for module in range(model.mtp.depth)]
    groups = [range(model.layers), *modules]
    return CachedModel(WholeModel(part), tuple(map(caches, groups)), vocabulary or model.vocab_size)
