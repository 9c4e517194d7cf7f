"""What is reported of a generated text: in words, as JSON, and compared with plain decoding."""

from __future__ import annotations

from typing import Any

from trainer.errors import RunError
from trainer.generate.answer import Answer


def require_same(made: Answer, plain: Answer) -> None:
    """Raise RunError unless speculative decoding gave the tokens of plain decoding."""
    if made.tokens == plain.tokens:
        return
    pairs = zip(plain.tokens, made.tokens)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(made.tokens))
    raise RunError(
        f"from new token {first + 1} on, speculative decoding differs from plain "
        "decoding, which rounding can rarely cause (docs/generation.md): try --dtype float64"
    )


def as_json(made: Answer, plain: Answer | None) -> dict[str, Any]:
    """plain: the same text by plain decoding, to set beside it."""
    result = {"tokens": made.tokens, **made.numbers()}
    if plain is not None:
        result |= {"greedy": plain.numbers(), "speed_up": _speed_up(made, plain)}
    return result


def in_words(made: Answer, plain: Answer | None, longest: int | None) -> str:
    """One line. longest: max_position_embeddings of the checkpoint."""
    words = [f"prompt of {_tokens(made.prompt_tokens)} in {made.prompt_seconds:.2f} s"]
    words.append(f"{_tokens(len(made.tokens), 'new ')}{', ended by itself' * made.ended}")
    if made.limit == "max_position_embeddings":
        words.append(
            f"no room for more: max_position_embeddings is {longest}, the data.sequence_length "
            "that a run trained with"
        )
    if (rate := made.tokens_per_second()) is not None:
        words.append(f"{rate:,.1f} tokens/s")
    if made.counts.offered:
        shares = ["none offered" if a is None else f"{a:.1%}" for a in made.acceptance()]
        words.append(f"drafts accepted {' and '.join(shares)}")
    if made.counts.offered and (tokens := made.tokens_per_forward()) is not None:
        words.append(f"{tokens:.2f} tokens per pass")
    if plain is not None and (rate := plain.tokens_per_second()) is not None:
        words.append(f"plain decoding gave the same tokens at {rate:,.1f} tokens/s")
        words.append(f"speed-up {_speed_up(made, plain):.2f}")
    return "; ".join(words)


def all_in_words(texts: int, new_tokens: int, seconds: float) -> str:
    """One line on several texts."""
    rate = f"{new_tokens / seconds:,.1f} tokens/s"
    return f"all {texts} prompts: {_tokens(new_tokens, 'new ')} in {seconds:.2f} s, {rate}"


def _tokens(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}token{'s' * (count != 1)}"


def _speed_up(made: Answer, plain: Answer) -> float | None:
    ours, theirs = made.tokens_per_second(), plain.tokens_per_second()
    return ours / theirs if ours and theirs else None
