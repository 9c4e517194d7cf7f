"""The language of a document, by py3langid, an extra: its model of 139 languages comes with it."""

from __future__ import annotations

import functools
from collections.abc import Callable

FIRST = 500  # characters that are looked at


def language_of(text: str) -> str:
    """The ISO 639 code of a text, by its first characters; "zxx" where they are no language; ""
    where py3langid is not installed."""
    classify = _classifier()
    return "" if classify is None else str(classify(text[:FIRST])[0])


@functools.cache
def _classifier() -> Callable[[str], tuple[str, float]] | None:
    """Once per process: the model takes half a second to load."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    known: Callable[[str], tuple[str, float]] = LanguageIdentifier.from_model_file(
        MODEL_FILE
    ).classify
    return known
