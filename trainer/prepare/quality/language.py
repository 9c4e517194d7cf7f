"""The language of a document, by py3langid, an extra: its model of 139 languages comes with it."""

from __future__ import annotations

FIRST = 500  # characters that are looked at


class Languages:
    """Where py3langid is not installed, no language is told."""

    def __init__(self) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            self._known = None
        else:
            self._known = LanguageIdentifier.from_model_file(MODEL_FILE)

    def of(self, text: str) -> str:
        """Its ISO 639 code, by its first characters; "zxx" where they are no language; "" where
        none is told."""
        if self._known is None:
            return ""
        return str(self._known.classify(text[:FIRST])[0])
