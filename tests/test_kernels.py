"""Kernels in Triton without a GPU: run by Triton's interpreter, and compiled for Hopper."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install triton",
)
ROOT = Path(__file__).parent.parent


def pytest_of(folder: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", folder]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_kernels_agree_with_their_plain_versions_in_the_interpreter() -> None:
    run = pytest_of("tests/kernels", TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stdout[-5000:]


def test_kernels_compile_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to machine code: products by tensor cores of the type of their operands, no register
    spilled, and no more shared memory than a multiprocessor has."""
    from tests.kernels.hopper import compiled
    from tests.kernels.launches import launch_all

    kernels = compiled(launch_all, monkeypatch)
    types = {kernel.name: kernel.types for kernel in kernels}
    assert types["_scaled_product"] == types["_add_scaled_product"] == {"e4m3"}
    assert types["_add_grouped_product"] == {"bf16"}
    for kernel in kernels:
        assert kernel.stack == 0, f"{kernel.name} spills {kernel.stack} bytes of a thread"
        assert kernel.shared <= 227 * 1024, f"{kernel.name} needs {kernel.shared} bytes"
