"""Imported first by every script here: what runs is the checkout that the script lies in, not
another one that is installed, and a signal during the other imports ends it in one line."""

from __future__ import annotations

import sys
from pathlib import Path

# In place of the scripts' own folder, so that none of them can be taken for another module.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from trainer.run import startup  # noqa: E402

startup.handle_signals(Path(sys.argv[0]).stem)
startup.keep_freed_memory()
