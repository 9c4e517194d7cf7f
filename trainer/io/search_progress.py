"""How far a search for a schedule is, on stderr."""

from __future__ import annotations

import sys

from parallel.study.search import Progress


def show_search(news: Progress) -> None:
    """One line, written over the one before on a terminal."""
    text = f"search: best {news.best:.6g}, bound {news.lower_bound:.6g}, {news.moves} moves, "
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text}{news.seconds_left:.0f} s left  ", file=sys.stderr, end=end)
