"""The state of an optimizer moves between layouts by the released names of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parallel.ranks.process import Process
from parallel.reduce.bucket import make_buckets
from tests.distributed import run_world
from tests.test_equivalence import Case
from trainer.build.layout import Layout, build
from trainer.model.names import named_biases, named_tensors
from trainer.objective.pretraining import TOKENS
from trainer.optim.state import ReleasedTensor, released_slices
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

ALONE = Case("1f1b", (1, 1, 1), 1, recompute=False, overlap=False)
SPREAD = Case("dualpipe", (2, 2, 1), 1, recompute=False, overlap=True)
State = dict[tuple[str, str], np.ndarray]


def train(layout: Layout, steps: range) -> None:
    """Steps on tokens that depend on the number of the step alone."""
    tokens = torch.randint(0, 257, (3, 16, 8), generator=torch.Generator().manual_seed(3))
    trainer, config = Trainer(layout), layout.config
    first = layout.data_rank * config.pipeline.micro_batches
    for step in steps:
        parts = tokens[step].split(layout.sequences)
        trainer.step(Progress(step), lambda m, p=parts: {TOKENS: p[first + m]})


def weights(layout: Layout) -> dict[str, np.ndarray]:
    held = [*named_tensors(layout.part), *named_biases(layout.part)]
    return {name: tensor.detach().numpy().copy() for name, tensor in held}


def saved(process: Process, case: Case) -> dict[str, Any]:
    """Two steps, the state that this rank would save, and the weights after a third step."""
    layout = build(case.config(), process, torch.device("cpu"))
    train(layout, range(2))
    pieces = [
        (f.name, f.kind, f.start, f.shape, f.values.numpy().copy())
        for f in layout.optimizer.state()
        if f.saves
    ]
    biases = {name: bias.numpy().copy() for name, bias in named_biases(layout.part)}
    updates = layout.optimizer.updates
    train(layout, range(2, 3))
    return {"pieces": pieces, "biases": biases, "updates": updates, "after": weights(layout)}


def resumed(
    process: Process, case: Case, state: State, biases: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The weights after the third step of a layout that starts from the state after two."""
    config = case.config()
    config.run.seed += 1  # nothing of the initial weights may survive
    layout = build(config, process, torch.device("cpu"))
    for fragment in layout.optimizer.state():
        whole = torch.from_numpy(state[fragment.name, fragment.kind])
        assert whole.shape == fragment.shape
        stop = fragment.start + len(fragment.values)
        fragment.values.copy_(whole.view(-1)[fragment.start : stop])
    for name, bias in named_biases(layout.part):
        bias.copy_(torch.from_numpy(biases[name]))
    layout.optimizer.loaded(2)
    assert layout.optimizer.updates == 2
    train(layout, range(2, 3))
    return weights(layout)


def joined(results: list[dict[str, Any]]) -> State:
    """Whole tensors from the pieces of all ranks; each element is there once."""
    state: State = {}
    times: State = {}
    for name, kind, start, shape, values in (p for r in results for p in r["pieces"]):
        if (name, kind) not in state:
            state[name, kind] = np.full(shape, np.nan)
            times[name, kind] = np.zeros(shape)
        assert state[name, kind].shape == shape
        state[name, kind].reshape(-1)[start : start + len(values)] = values
        times[name, kind].reshape(-1)[start : start + len(values)] += 1
    assert all((count == 1).all() for count in times.values())
    return state


@pytest.mark.parametrize(("before", "after"), [(ALONE, SPREAD), (SPREAD, ALONE)])
def test_state_that_is_loaded_into_another_layout_gives_the_same_next_step(
    before: Case, after: Case
) -> None:
    world = {ALONE: 1, SPREAD: 4}
    results = run_world(world[before], saved, before)
    assert all(result["updates"] == 2 for result in results)
    state = joined(results)
    expected = {name: value for result in results for name, value in result["after"].items()}
    matrices = {name for name in expected if "e_score_correction_bias" not in name}
    kinds = {"master", "exp_avg", "exp_avg_sq"}
    assert set(state) == {(name, kind) for name in matrices for kind in kinds}
    biases = {name: value for result in results for name, value in result["biases"].items()}
    for result in run_world(world[after], resumed, after, state, biases):
        for name, value in result.items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-10, err_msg=name)


def test_a_range_of_a_buffer_is_cut_at_the_tensors_in_it() -> None:
    """Two parameters, the second of two tensors; 64 elements from one start to the next."""
    parameters = {"p": nn.Parameter(torch.zeros(2, 3)), "q": nn.Parameter(torch.zeros(5))}
    alone = dict.fromkeys(parameters, (0,))
    (bucket,) = make_buckets(parameters, alone, {}, lambda name: "", lambda name: frozenset())
    a, b, c = ReleasedTensor("a", (2, 3)), ReleasedTensor("b", (4,)), ReleasedTensor("c", (1,))
    tensors_of = {"p": [a], "q": [b, c]}

    def slices(start: int, stop: int) -> list[tuple[ReleasedTensor, int, int, int]]:
        return list(released_slices(bucket, tensors_of, start, stop))

    assert slices(0, 128) == [(a, 0, 6, 0), (b, 0, 4, 64), (c, 0, 1, 68)]
    assert slices(4, 66) == [(a, 4, 6, 4), (b, 0, 2, 64)]
    assert slices(67, 69) == [(b, 3, 4, 67), (c, 0, 1, 68)]
    assert slices(6, 64) == slices(69, 128) == []
