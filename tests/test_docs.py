"""The links of README, CONTRIBUTING and docs: each leads to a file, and says which one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[([^\]\n]*(?:\n[^\]\n]*)?)\]\(\s*([^)\s]+)\s*\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_file_names_are_those_of_their_targets(page: Path) -> None:
    links = LINK.findall(page.read_text())
    assert links
    for text, target in links:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"
        if re.fullmatch(r"`?[\w/]+\.(py|md|yaml|cfg)`?", text):
            name = text.strip("`").rsplit("/", 1)[-1]
            assert name == file.name, f"{page.name}: [{text}] leads to {file.name}"
