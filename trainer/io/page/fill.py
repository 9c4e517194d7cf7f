"""One HTML page that needs nothing else: data, style and script are inside of it.

What is data the scripts show as text: none of it is markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def filled(folder: Path, data: Mapping[str, Any]) -> str:
    """The page.html of a folder, with the style and the elements of all pages, and after them its
    own style.css, if it has one, and draw.js."""
    # "</script>" in a value must not end the script element that holds the data.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    own = folder / "style.css"
    style = (HERE / "style.css").read_text() + (own.read_text() if own.exists() else "")
    script = (HERE / "elements.js").read_text() + (folder / "draw.js").read_text()
    html = (folder / "page.html").read_text()
    for place, content in (("/*STYLE*/", style), ("/*SCRIPT*/", script), ("/*DATA*/", text)):
        html = html.replace(place, content)
    return html
