"""What was found in a text, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REASONS = {
    "evaluation": "with words of an evaluation text",
    "exact": "exact repeats",
    "near": "near repeats",
}
_LANGUAGES = 3


def summary(figures: Mapping[str, Any]) -> list[str]:
    """figures: of Findings."""
    read, kept = figures["read"], figures["kept"]
    lines = [f"text: {read['documents']:,} documents, {read['bytes'] / 1e6:,.1f} MB"]
    for reason, words in _REASONS.items():
        left = figures["dropped"][reason]
        if left["documents"]:
            share = left["bytes"] / read["bytes"]
            lines.append(
                f"left out: {left['documents']:,} documents, {left['bytes'] / 1e6:,.1f} MB "
                f"({share:.1%}), {words}"
            )
    evaluation = figures.get("evaluation")
    if evaluation:
        lines.append(
            f"evaluation: {evaluation['found']:,} of {evaluation['texts']:,} texts found; "
            f"{evaluation['too_short']:,} too short to look for"
        )
    characters = {kind: n for kind, n in kept["characters"].items() if n}
    if characters:
        lines.append(f"characters: {_shares(characters, len(characters))}")
    if kept["languages"]:
        lines.append(f"languages: {_shares(kept['languages'], _LANGUAGES)}")
    return lines


def _shares(counts: Mapping[str, int], most: int) -> str:
    whole = sum(counts.values())
    first = sorted(counts.items(), key=lambda each: -each[1])[:most]
    return ", ".join(f"{name} {count / whole:.1%}" for name, count in first)
