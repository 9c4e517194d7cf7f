"""Fixtures that several files of tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.synthetic_checkpoint import TOY, TOY_SHARD, make_checkpoint
from trainer.dry.device import pretended_gpu

# Autograd counts the kinds of devices at the first backward of a process, and knows no other later:
# tests that plan memory would depend on which ran before them.
pretended_gpu()


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic checkpoint as released, in fp8; not to be changed."""
    folder = tmp_path_factory.mktemp("synthetic") / "released"
    make_checkpoint(folder, TOY, TOY_SHARD)
    return folder


@pytest.fixture
def source(released: Path, tmp_path: Path) -> Path:
    """A copy of `released`, to be changed."""
    return Path(shutil.copytree(released, tmp_path / "source"))
