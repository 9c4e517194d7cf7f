"""Running conversions in this process, and comparing folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

from launch.convert import main

EXPERT = "model.layers.5.mlp.experts.15.down_proj.weight"


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix != ".py"
    }
