"""Tokens after tokens, for programs: no text, no output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainer.generate.choose import Choose, greedy
from trainer.generate.decode import decode
from trainer.generate.text_model import TextModel


def continue_texts(
    text_model: TextModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    choose: Choose = greedy,
    ends: Collection[int] = (),
) -> list[list[int]]:
    """`new_tokens` tokens after each prompt of at least one token, all decoded together.

    ends: tokens that end a text, and are its last; text_model.ends has those of the checkpoint.
    choose: also a Sampler(temperature, top_p, seed), which draws for prompt n with seed + n.
    """
    texts: list[list[int]] = [[] for _ in prompts]

    def push(number: int, token: int) -> bool:
        texts[number].append(token)
        return token not in ends and len(texts[number]) < new_tokens

    longest = max(map(len, prompts)) + new_tokens - 1
    decode(text_model.start_texts(longest, len(prompts)), prompts, choose, push)
    return texts
