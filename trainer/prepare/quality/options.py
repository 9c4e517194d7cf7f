"""What is looked for in a text before it is prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Dedup: TypeAlias = Literal["exact", "near"]


@dataclass(frozen=True)
class QualityOptions:
    """dedup: which repeats are left out; None: none. near: least Jaccard similarity of a near
    repeat. evaluation: files with texts that must not be in what is trained on, each in
    `evaluation_field` where they are JSON lines. ngram: words in a row that are too many to share
    with one of them, unless more than `common` documents have them. seed: of which documents are
    shown as samples."""

    dedup: Dedup | None = None
    near: float = 0.8
    evaluation: tuple[str, ...] = ()
    evaluation_field: str = "text"
    ngram: int = 13
    common: int = 10
    seed: int = 0
