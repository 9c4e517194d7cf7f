"""Speculative decoding with MTP: drafts of the MTP modules, verified by the main model.

Source: DeepSeek-V3 (arXiv 2412.19437) section 5.4.3 proposes it; the verification is that of
greedy decoding in arXiv 2211.17192: a draft holds where it is the main model's own choice.

Positions: module k joins the hidden state of depth k - 1 at position i with token i + k, and its
result there predicts token i + k + 1. With tokens 0 .. n known and the model's hidden states up to
n - 1, module 1 drafts token n + 1 at position n - 1; module 2 takes this draft to draft n + 2, also
at position n - 1; and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.generate.cached_model import CachedModel
from trainer.generate.choose import most_likely
from trainer.generate.decode import Counts

# Logits closer to each other than this x machine epsilon x the larger are a tie: passes over more
# and over fewer tokens round differently (docs/generation.md has how much).
TIE = 1000.0


class Drafter:
    """Drafts of all MTP modules of a model. It must be shown every hidden state of a text."""

    def __init__(self, model: CachedModel) -> None:
        self._model = model
        # Of each depth, its last hidden state that saw no draft, for the next depth to join with a
        # token where it had a draft: [1, D], or [0, D] where there is none yet.
        self._waiting: list[Tensor] = []

    def draft(self, hidden_TD: Tensor, tokens: Sequence[int]) -> list[int]:
        """The next tokens after `tokens`, one of each depth.

        hidden_TD: the model's, of the T positions from the one after the last call's to the last
        but one of `tokens`, which are all tokens of the text.
        """
        model, known = self._model, list(tokens)
        last = len(tokens) - 1  # the position of the last token, which the model has not read
        waiting: list[Tensor] = []
        for depth in range(1, model.mtp_depth + 1):
            if depth > 1 and self._waiting:
                hidden_TD = torch.cat([self._waiting[depth - 2], hidden_TD])
            first = last - len(hidden_TD)
            model.truncate(first, depth)
            hidden_TD = model.mtp_hidden(depth, hidden_TD, known[first + depth : last + depth])
            known += most_likely(model.logits(hidden_TD[-1:]))
            # The last that saw no draft is at position last - depth.
            settled = last - depth - first
            waiting.append(hidden_TD[settled : settled + 1] if settled >= 0 else hidden_TD[:0])
        self._waiting = waiting
        return known[len(tokens) :]


def speculate(model: CachedModel, prompt: Sequence[int], counts: Counts) -> Iterator[int]:
    """The tokens of greedy `decode`, several for each pass of the main model where drafts hold.

    Near ties are decided as `decode` decides them, from caches that were filled token by token.
    """
    drafter, tokens = Drafter(model), list(prompt)
    counts.offered, counts.accepted = [0] * model.mtp_depth, [0] * model.mtp_depth
    for _, _, hidden_TD in model.read([prompt]):
        if model.length < len(prompt):
            drafter.draft(hidden_TD, tokens[: model.length + 1])
    [token] = most_likely(model.logits(hidden_TD[-1:]))
    as_decoded = len(prompt)  # tokens in the caches as `decode` has them
    while True:
        yield token
        tokens.append(token)
        drafts = drafter.draft(hidden_TD, tokens)[: model.positions - len(tokens)]
        hidden_TD = model.hidden([[token, *drafts]])
        counts.forwards += 1
        logits_TV = model.logits(hidden_TD)
        choices = most_likely(logits_TV)
        held = _leading_equal(drafts, choices)
        tie = _first_tie(logits_TV[: held + 1])
        if tie is not None:
            held = tie
        _count(counts, len(drafts), held)
        tokens += drafts[:held]
        token = choices[held]
        if tie is not None:
            token = _decide(model, tokens, as_decoded, counts)
            as_decoded = len(tokens)
        model.truncate(len(tokens))
        hidden_TD = hidden_TD[: held + 1]
        yield from drafts[:held]


def _decide(model: CachedModel, tokens: Sequence[int], as_decoded: int, counts: Counts) -> int:
    """The choice after `tokens`, which are read one by one after the first `as_decoded`."""
    model.truncate(as_decoded)
    for token in tokens[as_decoded:]:
        last_1D = model.hidden([[token]])
        counts.forwards += 1
    [choice] = most_likely(model.logits(last_1D))
    return choice


def _leading_equal(drafts: Sequence[int], choices: Sequence[int]) -> int:
    for index, draft in enumerate(drafts):
        if draft != choices[index]:
            return index
    return len(drafts)


def _first_tie(logits_TV: Tensor) -> int | None:
    """The first row whose two largest logits are a tie."""
    best_T2 = logits_TV.topk(2, -1).values
    margin_T = TIE * torch.finfo(logits_TV.dtype).eps * best_T2.abs().amax(-1)
    for row, tie in enumerate((best_T2[:, 0] - best_T2[:, 1] <= margin_T).tolist()):
        if tie:
            return row
    return None


def _count(counts: Counts, offered: int, held: int) -> None:
    for depth in range(offered):
        counts.offered[depth] += 1
        counts.accepted[depth] += depth < held
