"""Kernels that torch.compile has fused: the same numbers, whatever is recomputed; and what is said
where nothing can compile."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_equivalence import Case, run_case
from trainer.config.schema import Config, RunConfig
from trainer.config.validate import validate
from trainer.errors import ConfigError

KERNELS = 3  # each with a formula forward and one backward


@dataclass(frozen=True)
class Compiled(Case):
    def config(self) -> Config:
        config = super().config()
        return replace(config, run=replace(config.run, compile=True))


def run_both(process: Process, case: Case, cache: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case as it is, and compiled: with how many graphs, and why some were broken."""
    from torch._dynamo.utils import counters  # slow

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    plain = run_case(process, case)
    assert not counters["stats"], "the plain kernels compile"
    compiled = run_case(process, Compiled(**vars(case)))
    compiled["graphs"] = counters["stats"]["unique_graphs"]
    compiled["breaks"] = dict(counters["graph_break"])
    return plain, compiled


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_compiled_kernels_give_the_same_step_on_ranks_that_compile_at_once(
    recompute: bool, tmp_path: Path
) -> None:
    case = Case("dualpipev", (1, 2, 1), 1, recompute, overlap=True)
    for plain, compiled in run_world(2, run_both, case, str(tmp_path), timeout=300):
        for before, after in zip(plain["steps"], compiled["steps"]):
            assert after.loss == pytest.approx(before.loss, rel=1e-12)
        assert compiled["evaluation"] == pytest.approx(plain["evaluation"], rel=1e-12)
        for name, expected in plain["gradients"].items():
            np.testing.assert_allclose(
                compiled["gradients"][name], expected, rtol=0, atol=1e-12, err_msg=name
            )
        # Experts have other numbers of rows in every micro-batch, and none means a new graph.
        assert not compiled["breaks"]
        assert 2 * KERNELS <= compiled["graphs"] <= 4 * KERNELS


@pytest.mark.parametrize(
    "compiler, header, device, needs",
    [
        ("none-such -O2", "Python.h", "cpu", "a C++ compiler, and there is no `none-such` here"),
        ("true", "other.h", "cpu", "Python's headers"),
        ("true", "Python.h", "cuda", "triton, which is not installed"),
    ],
)
def test_a_run_that_nothing_can_compile_is_refused(
    compiler: str, header: str, device: Any, needs: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / header).touch()
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr("trainer.config.validate.sysconfig.get_path", lambda name: tmp_path)
    monkeypatch.setattr("trainer.config.validate.find_spec", lambda name: None)
    validate(Config(run=RunConfig(device=device)), 1)
    needs = f"run.compile needs {re.escape(needs)}.*or set run.compile to false"
    with pytest.raises(ConfigError, match=needs):
        validate(Config(run=RunConfig(compile=True, device=device)), 1)
