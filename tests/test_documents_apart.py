"""Documents of a sequence that are kept apart: as if each were a sequence of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_equivalence import Case, run_case, run_cases
from tests.test_equivalence import _compare as compare
from trainer.build.layout import build
from trainer.data.document_numbers import document_numbers
from trainer.model.places import Places
from trainer.objective.pretraining import DOCUMENTS, LOSS, TOKENS
from trainer.recipe.progress import Progress
from trainer.run.step import Trainer

END = 0


def test_numbers_and_positions_start_anew_after_each_end() -> None:
    tokens = torch.tensor([[5, END, 7, 8, END, END, 9], [1, 2, 3, 4, 5, 6, END]])
    numbers = document_numbers(tokens, END)
    assert numbers.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0] * 7]
    documents = Places.of_documents(numbers)
    assert documents.position_T.tolist() == [0, 1, 0, 1, 2, 0, 0, *range(7)]


@pytest.mark.parametrize("mtp", [0, 1, 2])
def test_packed_documents_are_as_if_each_were_alone(mtp: int) -> None:
    """Losses of all depths, the number of their targets, and every gradient, in float64. Router
    balance, which is a loss of a sequence, is left out."""
    config = Case("1f1b", (1, 1, 1), mtp, False, True, apart=True).config()
    model = replace(config.model, moe=replace(config.model.moe, balance_alpha=0.0))
    lengths = [6, 3, 1, 8, 2, 4]  # ends among them
    size = sum(lengths)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 250, (size,), generator=generator)
    tokens[torch.tensor(lengths).cumsum(0) - 1] = END
    width = size + 1 + mtp

    def losses(rows: Tensor) -> tuple[dict[str, float], dict[str, int], dict[str, Tensor]]:
        """Sums, targets and gradients of sums, of documents in rows filled up with padding."""
        data = replace(config.data, sequence_length=size, global_batch=len(rows))
        pipeline = replace(config.pipeline, micro_batches=1)
        layout = build(
            replace(config, model=model, data=data, pipeline=pipeline),
            Process(),
            torch.device("cpu"),
        )
        numbers = document_numbers(rows.clamp(min=0), END) + 100 * (rows < 0)
        fields = {TOKENS: rows, DOCUMENTS: numbers}
        totals = Trainer(layout).accumulate(Progress(), lambda m: fields)
        gradients = {
            name: parameter.grad * totals.targets[LOSS]
            for name, parameter in layout.part.named_parameters()
        }
        return totals.losses, dict(totals.targets), gradients

    packed = torch.full((1, width), -1)
    packed[0, :size] = tokens
    alone = torch.full((len(lengths), width), -1)
    for row, part in zip(alone, tokens.split(lengths)):
        row[: len(part)] = part
    in_one, apart = losses(packed), losses(alone)
    assert in_one[1] == apart[1] and in_one[1][LOSS] == size - len(lengths)
    for name, value in apart[0].items():
        if name != "balance":
            assert in_one[0][name] == pytest.approx(value, rel=1e-12)
    if mtp == 0:  # weights of MTP are by its own targets, so sums differ by a factor there
        for name, gradient in apart[2].items():
            torch.testing.assert_close(in_one[2][name], gradient, rtol=0, atol=1e-10)


def test_any_layout_keeps_them_apart() -> None:
    """And divides by the targets of the whole batch, which data ranks have different numbers of."""
    reference = run_case(Process(), Case("1f1b", (1, 1, 1), 1, False, False, apart=True))
    together = run_case(Process(), Case("1f1b", (1, 1, 1), 1, False, False))
    assert reference["steps"][0].loss != pytest.approx(together["steps"][0].loss, rel=1e-3)
    for mesh, schedule in (((2, 2, 1), "dualpipe"), ((2, 1, 2), "zbv")):
        case = Case(schedule, mesh, 1, True, True, apart=True)
        for rank, (result,) in enumerate(run_world(4, run_cases, [case])):
            compare(f"{case} on rank {rank}", result, reference)
