"""Tasks of lm-eval, from files here: nothing is fetched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import yaml

from trainer.checkpoint.hf.reader import Checkpoint
from trainer.errors import ConfigError
from trainer.evaluate.measure import Dtype, torch_type
from trainer.generate.text_model import load_text_model

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_LONGEST = 2048  # tokens, where config.json does not say


def run_tasks(
    folder: Path, place: Path, dtype: Dtype, limit: int | None
) -> dict[str, dict[str, float]]:
    """By task, its measures. place: a task file, or a folder of them; paths in it are from where it
    lies. Raises ConfigError without lm-eval, or without a task."""
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    names = [_name_of(file) for file in files]
    if not names:
        raise ConfigError(f"--tasks {place}: has no task file (*.yaml)")
    os.environ.update(_OFFLINE)  # before lm-eval's libraries read it
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"--tasks is run by lm-eval ({error}): pip install lm-eval") from error
    from trainer.evaluate.lm_eval_model import TandemLM

    longest = Checkpoint(folder).config.get("max_position_embeddings") or _LONGEST
    text_model = load_text_model(folder, None, torch_type(dtype), False, lambda done, total: None)
    here = (place if place.is_dir() else place.parent).resolve()
    manager = TaskManager(include_path=str(here), include_defaults=False)
    with contextlib.chdir(here):
        found = simple_evaluate(
            model=TandemLM(text_model, longest), tasks=names, task_manager=manager, limit=limit
        )
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in values.items()
            if isinstance(value, float) and "stderr" not in name
        }
        for task, values in found["results"].items()
    }


def _name_of(file: Path) -> str:
    """What a task file calls its task. Raises ConfigError."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"--tasks {file}: cannot be read ({why})") from error
    if not isinstance(content, dict) or not isinstance(content.get("task"), str):
        raise ConfigError(f"--tasks {file}: is no task of lm-eval: it names no `task`")
    return content["task"]
