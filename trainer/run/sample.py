"""Texts that a model writes while it is trained, under any layout of ranks.

No cache: for each token the stages run forward over the whole text, as they do in an evaluation.
That is slow, and exact, and needs no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from parallel.pipeline.executor import Executor
from trainer.build.layout import Layout
from trainer.data.text_stream import TextStream
from trainer.data.tokens import Tokenizer
from trainer.model.stage import MicroBatch
from trainer.objective.next_token import LAST, NEXT_TOKEN, NextToken
from trainer.objective.pretraining import TOKENS


def sample_text(
    layout: Layout,
    tokenizer: Tokenizer,
    prompt: str,
    new_tokens: int,
    asked: Callable[[], bool] = lambda: False,
) -> str:
    """The prompt and up to `new_tokens` tokens after it, each the most likely one.

    It ends sooner at the end of a document, where the text is as long as a training sequence, and
    once asked() has said on any rank that it is to stop. Collective over the world.
    """
    length = layout.config.data.sequence_length
    prompted = tokenizer.encode(prompt).tolist()
    text = prompted[max(0, len(prompted) - length + 1) :] or [tokenizer.end_of_document]
    stream = TextStream(tokenizer)
    written = "".join(map(stream.push, text))
    objective = NextToken(tokenizer.vocabulary_size)
    executor = layout.forward_executor(objective, micro_batches=1)
    for _ in range(min(new_tokens, length - len(text))):
        token, stop = _next_token(layout, executor, text, asked())
        if stop or token == tokenizer.end_of_document:
            break
        text.append(token)
        written += stream.push(token)
    return written + stream.end()


def _next_token(
    layout: Layout, executor: Executor, text: list[int], stop: bool
) -> tuple[int, bool]:
    """The token after `text`, and whether any rank is to stop; the same on all ranks."""
    config = layout.config
    shape = (layout.sequences, config.data.sequence_length)
    nothing: MicroBatch = {
        TOKENS: torch.zeros(shape, dtype=torch.int64, device=layout.device),
        LAST: torch.full(shape[:1], -1, device=layout.device),
    }
    asked = {name: field.clone() for name, field in nothing.items()}
    asked[TOKENS][0, : len(text)] = torch.tensor(text)
    asked[LAST][0] = len(text) - 1
    first = layout.data_rank == 0  # other micro-batches only keep the experts' exchange going
    result = executor.run(lambda flow, n: asked if first and (flow, n) == (0, 0) else nothing)
    answer = torch.tensor([int(result.tallies.get(NEXT_TOKEN, 0)), int(stop)])
    if dist.is_initialized():
        dist.all_reduce(answer)
    return int(answer[0]), bool(answer[1])
