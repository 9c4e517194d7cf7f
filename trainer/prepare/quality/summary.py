"""What was found in a text, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.prepare.quality.findings import Findings

_REASONS = {
    "evaluation": "with words of an evaluation text",
    "exact": "exact repeats",
    "near": "near repeats",
}
_LANGUAGES = 3


def summary(found: Findings) -> list[str]:
    """Each without its end."""
    figures = found.figures
    read, kept = figures["read"], figures["kept"]
    lines = [f"text: {_amount(read)}"]
    if found.seconds:
        rate = read["bytes"] / 1e6 / found.seconds
        lines[0] += f", looked at in {found.seconds:,.1f} s ({rate:,.1f} MB/s)"
    for reason, words in _REASONS.items():
        left = figures["dropped"][reason]
        if left["documents"]:
            share = left["bytes"] / read["bytes"]
            lines.append(f"left out: {_amount(left)} ({share:.1%}), {words}")
    evaluation = figures.get("evaluation")
    if evaluation:
        lines.append(
            f"evaluation: {evaluation['found']:,} of {evaluation['texts']:,} texts found; "
            f"{evaluation['too_short']:,} too short to look for; "
            f"{evaluation['common']:,} runs of words passed over as common"
        )
    characters = {kind: n for kind, n in kept["characters"].items() if n}
    if characters:
        lines.append(f"characters: {_shares(characters, len(characters))}")
    if kept["languages"]:
        lines.append(f"languages: {_shares(kept['languages'], _LANGUAGES)}")
    return lines


def _amount(of: Mapping[str, int]) -> str:
    unit, name = (1e6, "MB") if of["bytes"] >= 1e5 else (1e3, "kB")
    plural = "" if of["documents"] == 1 else "s"
    return f"{of['documents']:,} document{plural}, {of['bytes'] / unit:,.1f} {name}"


def _shares(counts: Mapping[str, int], most: int) -> str:
    whole = sum(counts.values())
    first = sorted(counts.items(), key=lambda each: -each[1])[:most]
    return ", ".join(f"{name} {count / whole:.1%}" for name, count in first)
