"""What starts a run on a cluster: shell scripts, whose programs are replaced by some that note how
they were called, and a manifest, which has to be one of Kubeflow Trainer's published API."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from parallel.ranks.cuda_environment import CUDA_ENVIRONMENT, cuda_environment_advice
from tests.commands import ROOT, wait_for
from trainer.config.derived import mesh_of
from trainer.config.parse import config_parser, parse
from trainer.run.rank import grace

SUBMIT = ROOT / "launch" / "submit"
SCRIPTS = ("environment.sh", "node.sh", "slurm.sbatch")


def program(folder: Path, name: str, text: str) -> None:
    """A program that notes its arguments in calls.txt, and then does `text`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{text}\n')
    path.chmod(0o755)


def calls(folder: Path, name: str) -> list[str]:
    file = folder / "calls.txt"
    found = file.read_text().splitlines() if file.exists() else []
    return [line.removeprefix(f"{name} ") for line in found if line.startswith(f"{name} ")]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CALLS": str(folder / "calls.txt"), **variables}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", SUBMIT / script], check=True)


def exported() -> dict[str, str]:
    """What environment.sh sets where nothing else has."""
    done = subprocess.run(
        ["bash", "-c", f"PROCESSES=2; . {SUBMIT / 'environment.sh'}; env"],
        text=True, capture_output=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def test_the_environment_is_what_a_run_on_cuda_asks_for() -> None:
    found = exported()
    assert {name: found[name] for name in CUDA_ENVIRONMENT} == CUDA_ENVIRONMENT
    assert cuda_environment_advice(found) == []
    for name, value in (("CUDA_DEVICE_MAX_CONNECTIONS", "1"), ("CUDA_MODULE_LOADING", "lazy")):
        (line,) = cuda_environment_advice({**found, name: value})
        assert line.startswith(f"{name}=") and CUDA_ENVIRONMENT[name] in line


def test_each_variable_is_explained() -> None:
    explained = (ROOT / "docs" / "scale.md").read_text()
    for name in re.findall(r"export (\w+)=", (SUBMIT / "environment.sh").read_text()):
        assert f"`{name}`" in explained, name


def test_a_rank_may_end_its_step_before_torchrun_slurm_or_kubernetes_kills_it() -> None:
    environment = exported()
    ranks, torchrun = grace(environment), int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    slurm = re.search(r"--signal=B:USR1@(\d+)", (SUBMIT / "slurm.sbatch").read_text())
    node = documents()[0]["spec"]["template"]["spec"]["replicatedJobs"][0]
    pod = node["template"]["spec"]["template"]["spec"]
    assert slurm is not None
    assert 60 < ranks < torchrun < min(int(slurm[1]), pod["terminationGracePeriodSeconds"])
    assert grace({}) < 30


# --- node.sh ---------------------------------------------------------------------------------

# How the first and every other start of torchrun ends; the exit code, and how often it was started.
ENDS = {
    "done": (("exit 0", "exit 0"), 0, 1),
    "a config that cannot be run": (("exit 2", "exit 0"), 2, 1),
    "ranks that failed for the last time": (("exit 1", "exit 0"), 1, 1),
    "torchrun killed": (("kill -KILL $$", "exit 0"), 0, 2),
    "node 0 lost": (("exit 75", "exit 0"), 0, 2),
    "lost again and again": (("exit 75", "exit 75"), 75, 4),
}


def node(folder: Path, python: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    program(folder / "bin", "python", python)
    return subprocess.Popen(
        ["bash", SUBMIT / "node.sh", *arguments], text=True, stderr=subprocess.PIPE,
        env=environment(
            folder, NODES="2", NODE="1", PROCESSES="4", HEAD="first", JOB="7", **variables
        ),
    )  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_a_node_starts_torchrun_again_where_that_helps(tmp_path: Path, how: str) -> None:
    (first, others), code, starts = ENDS[how]
    once = f'if [ -e "$CALLS.once" ]; then {others}; else touch "$CALLS.once"; {first}; fi'
    says = 'echo "restarts $TANDEM_JOB $TANDEM_RESTARTS" >>"$CALLS"\n'
    process = node(
        tmp_path, says + once, "--config", "x.yaml", PREFLIGHT="off", RESTARTS="3", STARTS="5"
    )
    assert process.wait(20) == code, process.stderr
    commands = calls(tmp_path, "python")
    assert len(commands) == starts
    assert calls(tmp_path, "restarts") == [f"7 {5 + number}" for number in range(starts)]
    assert "--nnodes 2 --nproc-per-node 4" in commands[0] and "is_host=false" in commands[0]
    assert "--rdzv-endpoint first:29400" in commands[0]
    assert commands[0].endswith("train.py --config x.yaml")


def test_a_signal_reaches_torchrun_and_ends_the_node(tmp_path: Path) -> None:
    process = node(
        tmp_path, "trap 'exit 143' TERM; touch $CALLS.up; sleep 30 & wait", PREFLIGHT="off"
    )
    wait_for((tmp_path / "calls.txt.up").exists, 10)
    start = time.monotonic()
    process.terminate()
    assert process.wait(20) == 143 and time.monotonic() - start < 10
    assert len(calls(tmp_path, "python")) == 1


# --- slurm.sbatch ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "signal", "starts", "code", "queued"),
    [
        ("exit 0", None, 0, 0, False),
        ("exit 2", None, 0, 2, False),
        ("exit 1", None, 0, 0, True),
        ("exit 1", None, 3, 1, False),
        ("trap 'exit 143' TERM; touch $CALLS.up; sleep 30 & wait", "USR1", 0, 0, True),
        ("trap 'exit 143' TERM; touch $CALLS.up; sleep 30 & wait", "TERM", 0, 143, False),
    ],
)
def test_a_job_goes_back_into_the_queue_where_that_helps(
    tmp_path: Path, task: str, signal: str | None, starts: int, code: int, queued: bool
) -> None:
    program(tmp_path / "bin", "scontrol", "printf 'n1\\nn2\\n'")
    program(tmp_path / "bin", "srun", f'echo "head $HEAD $NODES $JOB" >>"$CALLS"\n{task}')
    process = subprocess.Popen(
        ["bash", SUBMIT / "slurm.sbatch", "--config", "x.yaml"],
        env=environment(
            tmp_path, SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_NODELIST="n[1-2]", SLURM_JOB_ID="9",
            SLURM_JOB_NUM_NODES="2", SLURM_CPUS_ON_NODE="96", SLURM_RESTART_COUNT=str(starts),
            REQUEUES="3",
        ),
    )  # fmt: skip
    if signal is not None:
        wait_for((tmp_path / "calls.txt.up").exists, 10)
        subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
    assert process.wait(20) == code
    assert calls(tmp_path, "head") == ["n1 2 slurm-9"]
    assert ("requeue 9" in calls(tmp_path, "scontrol")) == queued


def test_slurm_reads_all_its_options() -> None:
    """It stops reading at the first command."""
    head, _, rest = (SUBMIT / "slurm.sbatch").read_text().partition("\nset ")
    assert "#SBATCH" not in rest and "#SBATCH --requeue" in head
    assert all(not line or line.startswith("#") for line in head.splitlines())


# --- trainjob.yaml ---------------------------------------------------------------------------

KINDS = {
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((SUBMIT / "trainjob.yaml").read_text()))


def understood(document: dict[str, Any]) -> dict[str, Any]:
    """What the published API makes of it: raises for a wrong type, leaves out what it does not
    know."""
    model = KINDS[document["kind"]].from_dict(document)
    found: dict[str, Any] = model.to_dict()
    return found


def test_the_manifest_is_one_of_the_published_api() -> None:
    found = documents()
    assert [document["kind"] for document in found] == list(KINDS)
    for document in found:
        assert understood(document) == document
    runtime, job = found
    assert job["spec"]["runtimeRef"] == {
        "name": runtime["metadata"]["name"], "kind": runtime["kind"],
    }  # fmt: skip


def test_a_misspelt_key_of_the_manifest_is_seen() -> None:
    job = documents()[1]
    job["spec"]["trainer"]["numNode"] = job["spec"]["trainer"].pop("numNodes")
    assert understood(job) != job
    job["spec"]["trainer"]["numNodes"] = "8"
    with pytest.raises(ValueError, match="numNodes"):
        understood(job)


def test_the_pod_of_the_manifest_tells_node_sh_where_it_stands(tmp_path: Path) -> None:
    node = documents()[0]["spec"]["template"]["spec"]["replicatedJobs"][0]
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    trainer = documents()[1]["spec"]["trainer"]
    given = {
        "NNODES": str(trainer["numNodes"]), "NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "NODE_RANK": "3", "MASTER_ADDR": "job-node-0-0.job", "MASTER_PORT": "29500",
    }  # fmt: skip
    pod = {variable["name"]: f"its-{variable['name']}" for variable in container["env"]}
    program(tmp_path / "bin", "python", "exit 0")
    variables = {f"PET_{name}": value for name, value in given.items()}
    subprocess.run(
        [part.replace("/tandem/", f"{ROOT}/") for part in container["command"]] + trainer["args"],
        env=environment(tmp_path, **variables, **pod | {"STARTS": "0"}), check=True,
    )  # fmt: skip
    preflight, train = calls(tmp_path, "python")
    for part in (
        "--nnodes 8 --nproc-per-node 8", "--local-addr its-ADDRESS", "is_host=false",
    ):  # fmt: skip
        assert part in preflight and part in train
    assert "--rdzv-endpoint job-node-0-0.job:29500 --rdzv-id its-JOB" in train
    assert "preflight.py --config" in preflight and train.endswith(" ".join(trainer["args"]))


def world(config: str, options: Sequence[str] = ()) -> int:
    path = str(ROOT / config.removeprefix("/tandem/"))
    return mesh_of(parse(config_parser("train", "", ""), ["--config", path, *options])[0]).world


def test_examples_have_as_many_processes_as_their_configs() -> None:
    trainer = documents()[1]["spec"]["trainer"]
    ranks = trainer["numNodes"] * trainer["numProcPerNode"]
    assert trainer["args"][0] == "--config" and world(trainer["args"][1]) == ranks
    examples = re.findall(
        r"--nodes (\d+) \S+ --config (\S+)", (SUBMIT / "slurm.sbatch").read_text()
    )
    assert len(examples) == 3
    for nodes, config in examples:
        assert world(config) == int(nodes) * 8, config
