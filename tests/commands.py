"""Running the project's commands as a person does, in a folder of their own."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "tests" / "tiny.yaml")


def in_process(script: str, *arguments: object) -> int:
    """The exit code of a script's main, called here."""
    main = runpy.run_path(str(ROOT / "launch" / script))["main"]
    try:
        code: int = main(list(map(str, arguments)))
    except SystemExit as ended:
        return int(ended.code or 0)
    return code


def simulate_command(*arguments: object) -> int:
    return in_process("simulate.py", *arguments)


def start(
    folder: Path,
    *arguments: str,
    processes: int = 0,
    restarts: int = 0,
    script: str = "launch/train.py",
) -> subprocess.Popen[str]:
    """Start a script; it starts its ranks by itself, or torchrun does with `processes`, and so many
    times again."""
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
    environment |= {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, str(ROOT / script), *arguments],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 90.0) -> tuple[int, str, str]:
    """(exit code, stdout, stderr without torchrun's own words); kills what does not end."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, "\n".join(_own_lines(err))


def _own_lines(err: str) -> list[str]:
    """Up to torchrun's report on its children, which stands after ours."""
    lines = []
    for line in err.splitlines():
        if "torch/distributed/" in line:
            continue
        if line.startswith("Traceback"):
            break
        lines.append(line)
    return lines


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def rows(folder: Path, name: str = "tiny", events: bool = False) -> list[dict[str, Any]]:
    """What metrics.jsonl has of steps, or of events, so far."""
    metrics = folder / "runs" / name / "metrics.jsonl"
    whole = metrics.read_text().rpartition("\n")[0] if metrics.exists() else ""
    return [row for line in whole.splitlines() if ("event" in (row := json.loads(line))) == events]


def steps_done(folder: Path, name: str = "tiny") -> int:
    return len(rows(folder, name))


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as shard:
            tensors[name] = shard.get_tensor(name)
    return tensors
