"""What has to be the same on all nodes: programs, devices, the environment, the disk of the run."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from parallel.ranks.together import gather, together
from trainer.errors import RunError

_PREFIXES = ("CUDA_", "NCCL_", "TORCH_", "GLOO_", "OMP_", "PYTORCH_")
# Which GPU or interface: a node's own affair.
_OWN = {"CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"}
_ROOT = Path(__file__).parents[2]
_DRIVER = Path("/proc/driver/nvidia/version")


def versions(device: torch.device) -> Mapping[str, str]:
    """By name, as text."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "code": _code()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {
            "CUDA": str(torch.version.cuda),
            "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
            "driver": _driver(),
            "GPU": f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        }
    return found


def environment(variables: Mapping[str, str]) -> Mapping[str, str]:
    """Those of `variables` that change how ranks compute and communicate."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(_PREFIXES) and name not in _OWN
    }


def disk(folder: Path) -> tuple[int, bool]:
    """(free bytes, whether this rank sees a file that rank 0 writes) at `folder`, which is made if
    it is not there. Collective over the world. Raises RunError where rank 0 cannot write."""
    name = f".preflight-{uuid.uuid4().hex}"
    file = folder / gather(name)[0]
    try:
        together(lambda: _write(file) if file.name == name else None)
        shared = file.exists()
        return shutil.disk_usage(_existing(folder)).free, shared
    finally:
        gather(None)  # all have looked
        if file.name == name:
            file.unlink(missing_ok=True)


def _write(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise RunError(f"run.dir: cannot write to {file.parent}: {error.strerror}") from error


def _existing(folder: Path) -> Path:
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return path


def _code() -> str:
    """Of the trainer itself, which may lie on each node's own disk."""
    digest = hashlib.sha256()
    for room in ("parallel", "trainer", "launch"):
        for file in sorted((_ROOT / room).rglob("*.py")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _driver() -> str:
    with suppress(OSError, IndexError):
        return _DRIVER.read_text().split("Kernel Module")[1].split()[0]
    return "unknown"


def host() -> str:
    """This machine's name, without its domain."""
    return os.uname().nodename.partition(".")[0]
