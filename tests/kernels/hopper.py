"""Kernels compiled for a GPU of compute capability 9.0 where there is none: what their wrappers
would launch is compiled, down to machine code, and not run."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction, mangle_type

TARGET = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True)
class Machine:
    """The machine code of a kernel. shared: bytes that a block needs of shared memory. registers:
    of a thread. stack: bytes of a thread, to which its registers spill."""

    name: str
    ptx: str
    shared: int
    registers: int
    stack: int

    @property
    def tensor_cores(self) -> bool:
        """Whether it multiplies by the instructions of Hopper."""
        return "wgmma.mma_async" in self.ptx

    @property
    def types(self) -> set[str]:
        """Of operands of tensor cores."""
        found = re.findall(r"wgmma.mma_async\.\S*?\.f32\.(\w+)\.(\w+)", self.ptx)
        return {name for pair in found for name in pair}


def compiled(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """What `call` launches, on CPU tensors whose contents do not matter."""
    kernels: list[Machine] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False)) | {
            name: options.pop(name) for name in list(options) if name in self.arg_names
        }
        constants = {p.name: named[p.name] for p in self.params if p.is_constexpr}
        types = {p.name: "constexpr" if p.is_constexpr else mangle_type(named[p.name])
                 for p in self.params}  # fmt: skip
        aligned = [["tt.divisibility", 16]]
        attrs = {
            (i,): aligned
            for i, p in enumerate(self.params)
            if not p.is_constexpr and _divides(named[p.name])
        }
        source = triton.compiler.ASTSource(self, types, constants, attrs)
        machine = triton.compile(source, target=TARGET, options=options)
        resources = _resources(machine.asm["cubin"])
        shared = machine.metadata.shared
        kernels.append(Machine(self.fn.__name__, machine.asm["ptx"], shared, *resources))

    monkeypatch.setattr(JITFunction, "run", run)
    call()
    return kernels


def _divides(value: Any) -> bool:
    return hasattr(value, "data_ptr") or (type(value) is int and value % 16 == 0)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of the stack, to which registers spill) of a thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return int(registers), int(stack)
