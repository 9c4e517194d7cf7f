"""Every command of the README runs as it is printed there, one after the other, shortened."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -e "
# What shortens each command: the last of two equal options counts.
SHORTER = {
    "launch/train.py": "--run.steps 2 --metrics.eval_sequences 2 --metrics.sample_tokens 2",
    "launch/throughput.py": "--steps 1 --warmup 0",
    "launch/benchmark.py": "--steps 1 --warmup 0",
    "launch/optimizers.py": "--steps 1",
    "launch/generate.py": "--max-new-tokens 5",
    "--schedule searched": "--search-seconds 1",
}


def shortened(command: str) -> str:
    for what, more in SHORTER.items():
        if what in command:
            command += f" {more}"
    return command


def test_the_two_commands_of_the_start_make_an_environment_and_ci_finds_them() -> None:
    starts = [command for command in COMMANDS if command.startswith(INSTALL)]
    assert len(starts) == 2 and "launch/train.py" in starts[0] and starts[1].endswith("&& pytest")
    ci = (ROOT / ".ci/run").read_text()
    for pattern, command in zip(re.findall(r"grep -m 1 '(.*?)' README", ci), starts, strict=True):
        assert re.match(pattern, command)


@pytest.mark.readme
def test_every_command_runs_as_printed(tmp_path: Path) -> None:
    """In a copy of the checkout, since they leave runs and pictures; those that come later read
    what those before have left."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = []
    for command in COMMANDS:
        if command.startswith(INSTALL):
            command = command.split(" && ", 3)[3]  # pytest has been installed: it runs this
        if command == "pytest":
            continue
        done = subprocess.run(
            ["bash", "-c", shortened(command)],
            cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(command)
    assert len(ran) > 12
    assert (tmp_path / "mine-fp8/config.json").exists() and (tmp_path / "dualpipe.svg").exists()
