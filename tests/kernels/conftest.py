"""Where the kernels run: on a GPU, or, with TRITON_INTERPRET=1, by Triton's interpreter on the CPU.

The interpreter of Triton 3.7 and 3.8 does not compute as a GPU does where numbers are narrow: it
cuts bfloat16 off, loses the carry when it rounds to fp8, and multiplies the bits of bfloat16 as
integers. These three are torch's here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]  # which import triton


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def narrow_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the interpreter, as those of a GPU."""
    if INTERPRETED:
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        plain = InterpreterBuilder.cast_impl

        def cast(self: Any, source: Any, type_: Any, *rounding: Any) -> Any:
            narrow = {str(source.dtype.scalar), str(type_.scalar)} & set(_TORCH)
            return _cast(TensorHandle, source, type_) if narrow else plain(self, source, type_)

        def dot(self: Any, a: Any, b: Any, into: Any, *_: Any) -> Any:
            product = _values(a) @ _values(b) + torch.from_numpy(into.data)
            return TensorHandle(product.numpy(), into.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)
        monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", cast)
        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    yield


_TORCH = {"bf16": (torch.bfloat16, torch.int16), "fp8e4nv": (torch.float8_e4m3fn, torch.uint8)}


def _values(handle: Any) -> torch.Tensor:
    """float32, of a block of the interpreter's."""
    name = str(handle.dtype.scalar)
    if name not in _TORCH:
        return torch.from_numpy(handle.data.astype("float32"))
    dtype, bits = _TORCH[name]
    signed = handle.data.view("int16") if bits is torch.int16 else handle.data
    return torch.from_numpy(signed.copy()).view(dtype).float()


def _cast(make: Any, source: Any, type_: Any) -> Any:
    values, name = _values(source), str(type_.scalar)
    if name not in _TORCH:
        return make(values.numpy(), type_.scalar)
    dtype, bits = _TORCH[name]
    narrow = values.to(dtype).view(bits).numpy()
    return make(narrow.view("uint16") if bits is torch.int16 else narrow, type_.scalar)
