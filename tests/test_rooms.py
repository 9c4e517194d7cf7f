"""Who may import whom: launch -> trainer -> parallel, and what needs no torch has none."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Rooms of parallel/, each of which may import those before it in its line.
PARALLEL = {
    "files": (),
    "schedule": ("files",),
    "ranks": (),
    "study": ("schedule", "files"),
    "tape": (),
    "ops": ("tape",),
    "expert": ("tape", "ops", "ranks"),
    "context": ("tape", "ops", "ranks", "expert"),
    "reduce": ("ranks", "schedule", "ops"),
    "pipeline": ("schedule", "study", "tape", "ranks", "files"),
}
# What each room of trainer/ may not know.
FORBIDDEN = {
    "config": ("build", "run", "bench", "report", "optim"),
    "model": ("trainer.config.validate", "build", "run", "bench", "report", "optim", "data"),
    "objective": ("build", "run", "bench", "report", "optim", "checkpoint"),
    "data": ("model", "build", "run", "bench", "report", "optim", "checkpoint"),
    "optim": ("build", "run", "bench", "report", "model"),
    "recipe": ("build", "run", "bench", "report", "model", "optim", "data", "checkpoint"),
    "io": ("config", "model", "build", "run", "bench", "report", "optim", "data", "checkpoint"),
    "build": ("run", "bench", "report", "generate"),
    "checkpoint": ("run", "bench", "report", "generate"),
    "report": ("run", "bench", "build"),
    "guard": ("build", "run", "bench", "report"),
    "preflight": ("build", "run", "bench", "report", "model", "data", "optim", "checkpoint"),
    "generate": ("run", "bench", "report", "build"),
    "plan": ("run", "bench", "report", "generate"),
    "prepare": ("model", "build", "run", "bench", "report", "optim", "checkpoint", "generate"),
    "needle": ("build", "run", "bench", "optim"),
    "evaluate": ("bench", "optim", "dry", "plan"),
    "dry": ("bench", "report", "generate", "checkpoint"),
}
NO_TORCH = (
    "parallel/files",
    "parallel/schedule",
    "parallel/study",
    "trainer/config",
    "trainer/recipe",
    "parallel/ranks/mesh.py",
)


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of a file, those inside functions too; relative ones are not
    used here."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return found


def test_imports_never_go_back() -> None:
    for folder, forbidden in (("parallel", ("trainer", "launch")), ("trainer", ("launch",))):
        for file in files(folder):
            for module, _ in imports(file):
                assert module.split(".")[0] not in forbidden, f"{file} imports {module}"


def test_no_file_lies_loose() -> None:
    loose = {path.name for path in (ROOT / "trainer").glob("*.py")}
    assert loose == {"__init__.py", "errors.py"}
    assert {path.name for path in (ROOT / "parallel").glob("*.py")} == loose
    rooms = {path.name for path in (ROOT / "parallel").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(PARALLEL)


@pytest.mark.parametrize("room", PARALLEL)
def test_rooms_of_parallel_know_only_those_below(room: str) -> None:
    allowed = {"errors", room, *PARALLEL[room]}
    for file in files(f"parallel/{room}"):
        for module, _ in imports(file):
            top, *rest = module.split(".")
            assert top != "parallel" or rest[0] in allowed, f"{file} imports {module}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_of_trainer_do_not_know_those_above(room: str) -> None:
    for file in files(f"trainer/{room}"):
        for module, _ in imports(file):
            parts = module.split(".")
            other = parts[1] if parts[0] == "trainer" and len(parts) > 1 else ""
            here = {other, module} & set(FORBIDDEN[room])
            assert not here, f"{file} imports {module}"


def test_the_model_knows_no_config_but_its_own() -> None:
    """Layers take the sections that describe a model, never the whole config of a run."""
    for file in files("trainer/model"):
        for module, name in imports(file):
            if module == "trainer.config.schema":
                assert name.removesuffix("Config") in {
                    "Attention", "Model", "MoE", "MTP", "Recompute", "Yarn",
                }, f"{file} imports {name}"  # fmt: skip


def test_tables_studies_and_configs_need_no_torch() -> None:
    modules = [
        str(file.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for place in NO_TORCH
        for file in (files(place) if (ROOT / place).is_dir() else [ROOT / place])
    ]
    code = f"import sys, {', '.join(modules)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
