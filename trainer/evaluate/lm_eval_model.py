"""A checkpoint as lm-eval asks for one (lm_eval.api.model.TemplateLM)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from trainer.generate.continue_texts import continue_texts
from trainer.generate.text_model import TextModel

_AT_ONCE = 16  # texts
_NEW_TOKENS = 256  # where a task does not say


class TandemLM(TemplateLM):
    """longest: tokens of a text at most; of longer ones the end is read."""

    def __init__(self, text_model: TextModel, longest: int) -> None:
        super().__init__()
        self.text_model, self.longest = text_model, longest

    @property
    def eot_token_id(self) -> int:
        return self.text_model.lone

    def tok_encode(self, string: str, **options: Any) -> list[int]:
        """Without a first token."""
        found: list[int] = self.text_model.tokenizer.encode(string).tolist()
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Of each (.., context, continuation): log p of the continuation, and whether it is what
        the model would write."""
        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), _AT_ONCE):
            part = requests[start : start + _AT_ONCE]
            texts = [(context + more)[-self.longest - 1 :] for _, context, more in part]
            for (_, _, more), tokens, logits_TV in zip(part, texts, self._logits(texts)):
                wanted = torch.tensor(tokens[len(tokens) - len(more) :])
                logs_CV = logits_TV[len(logits_TV) - len(more) :].log_softmax(-1)
                total = logs_CV.gather(1, wanted.unsqueeze(1)).sum()
                found.append((float(total), bool((logs_CV.argmax(1) == wanted).all())))
        return found

    def _logits(self, texts: Sequence[list[int]]) -> Iterable[Tensor]:
        """Of each text, for the tokens after each but its last, [T - 1, V] float32 or wider."""
        lengths = [len(text) - 1 for text in texts]
        model = self.text_model.start_texts(max(lengths), len(texts))
        hidden_TD = model.hidden([text[:-1] for text in texts])
        # All rows of the head, those beyond the tokenizer's too, as in training.
        return (model.whole.logits(each).float() for each in hidden_TD.split(lengths))

    def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> list[float]:
        """log p of whole texts, in windows of the longest that the model reads."""
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.eot_token_id,
                max_seq_len=self.longest,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(total for total, _ in self._loglikelihood_tokens(parts)))
        return found

    def generate_until(self, requests: Sequence[Any], **options: Any) -> list[str]:
        """Greedily, up to one of the texts that a task stops at."""
        return [self._generated(*request.args) for request in requests]

    def _generated(self, context: str, options: dict[str, Any]) -> str:
        given = options.get("until") or []
        stops = [given] if isinstance(given, str) else given
        new = int(options.get("max_gen_toks", _NEW_TOKENS))
        prompt = self.text_model.prompt_tokens(context)[-max(1, self.longest - new) :]
        (tokens,) = continue_texts(self.text_model, [prompt], new, ends=self.text_model.ends)
        text = self.text_model.tokenizer.decode(np.array(tokens)).decode(errors="replace")
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
