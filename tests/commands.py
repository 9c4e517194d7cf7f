"""Running the project's commands as a person does, in a folder of their own."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

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
    folder: Path, *arguments: str, processes: int = 1, script: str = "launch/train.py"
) -> subprocess.Popen[str]:
    """Start a script, under torchrun where it has more than one process."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
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
    """Up to torchrun's report on its children, which stands behind ours."""
    lines = []
    for line in err.splitlines():
        if "torch/distributed/elastic/multiprocessing/api.py" in line:
            continue
        if line.startswith("Traceback"):
            break
        lines.append(line)
    return lines
