"""The whole model on one process, token after token: what it has read is in its caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.ops.ops import Ops
from trainer.config.schema import ModelConfig
from trainer.generate.cached_attention import CachedMLA
from trainer.generate.latent_cache import LatentCache
from trainer.model.part import ModelPart
from trainer.model.rope import rotations
from trainer.model.whole import WholeModel, whole_model

# The prompt is read this many tokens at a time, or fewer where attention's scores would be more
# numbers than this.
PROMPT_CHUNK = 512
SCORES = 1 << 25


def cached_part(model: ModelConfig, ops: Ops) -> ModelPart:
    """All parameters of `model`, unset, with attention over caches."""
    # Sequences of one token, so that any number of tokens is a number of sequences.
    return whole_model(model, ops, sequence_length=1, attention=CachedMLA)


@dataclass(frozen=True)
class CachedModel:
    """A text in a model; `start_text` makes it.

    caches: of the model's layers, then, of depth k, that of MTP module k. positions: that the
    caches have room for. vocabulary: tokens 0 .. vocabulary - 1 may be chosen; further rows of a
    head are padding and have no text.
    """

    whole: WholeModel
    caches: tuple[tuple[LatentCache, ...], ...]
    positions: int
    vocabulary: int

    @property
    def length(self) -> int:
        """Tokens that the model has read; its MTP modules may lag."""
        return self.caches[0][0].length

    @property
    def mtp_depth(self) -> int:
        return len(self.caches) - 1

    def hidden(self, tokens: Sequence[int]) -> Tensor:
        """Read T more tokens: their hidden states [T, D] after the final norm."""
        return self.whole.hidden(self._tensor(tokens))

    def read(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """Read any number of tokens in chunks that bound the memory: hidden states as `hidden`."""
        scores_per_token = self.whole.part.options.model.attention.heads * self.positions
        chunk = max(1, min(PROMPT_CHUNK, SCORES // scores_per_token))
        for start in range(0, len(tokens), chunk):
            yield self.hidden(tokens[start : start + chunk])

    def mtp_hidden(self, depth: int, hidden_TD: Tensor, tokens: Sequence[int]) -> Tensor:
        """The same of MTP module `depth` from 1; its arguments are those of WholeModel's."""
        return self.whole.mtp_hidden(depth, hidden_TD, self._tensor(tokens))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, vocabulary] of hidden states of any depth."""
        return self.whole.logits(hidden_TD)[:, : self.vocabulary]

    def truncate(self, length: int, depth: int = 0) -> None:
        """Let the model (MTP module `depth`) forget all but its first `length` tokens."""
        for cache in self.caches[depth]:
            cache.truncate(length)

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, device=self.whole.part.embed_tokens.weight.device)


def start_text(
    part: ModelPart, model: ModelConfig, positions: int, vocabulary: int | None = None
) -> CachedModel:
    """An empty text of up to `positions` tokens in `part`, made by `cached_part(model, ops)`.

    It takes the place of the text before, which cannot be continued. vocabulary: all tokens
    of the model, or only the first ones. Memory: (layers + MTP modules) x positions x (C + R)
    numbers, touched as tokens come.
    """
    weight, c = part.embed_tokens.weight, model.attention
    cos_LR, sin_LR = (table.to(weight) for table in rotations(positions, c))
    width = c.kv_lora_rank + c.rope_head_dim

    def new_cache(layer: int) -> LatentCache:
        attention = part.layers[str(layer)].self_attn
        assert isinstance(attention, CachedMLA)
        attention.cache = LatentCache(weight.new_empty(positions, width), cos_LR, sin_LR)
        return attention.cache

    main = tuple(new_cache(layer) for layer in range(model.layers))
    modules = [(new_cache(model.layers + module),) for module in range(model.mtp.depth)]
    whole = WholeModel(part)
    return CachedModel(whole, (main, *modules), positions, vocabulary or model.vocab_size)
