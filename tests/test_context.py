"""Sequences that ranks share: the numbers of one process, in float64 to rounding."""

from __future__ import annotations

import pytest
import torch

from parallel.context.chunks import Chunks
from parallel.ranks.process import Process
from tests.distributed import run_world
from tests.test_equivalence import Case, run_case, run_cases
from tests.test_equivalence import _compare as compare


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_every_token_and_the_work(ranks: int) -> None:
    """Rows, with what is looked ahead at; positions; and the way back from what all have."""
    length, ahead, batch = 16, 2, 3
    x = torch.arange(batch * (length + ahead)).view(batch, -1)
    every = [Chunks(rank, ranks, length) for rank in range(ranks)]
    rows = [chunks.rows(x) for chunks in every]
    for chunks, row in zip(every, rows):
        assert row.shape == (2 * batch, chunks.chunk + ahead)
        assert (row.diff(dim=1) == 1).all()
        positions = chunks.positions(2 * batch, x.device).view(2 * batch, -1)
        assert torch.equal(row[:, : chunks.chunk] % (length + ahead), positions)
        # What causal attention of its queries looks at: the same for all.
        assert sum((number + 1) for number in chunks.own) == 2 * ranks + 1
    gathered = torch.cat([row[:, :-ahead].flatten() for row in rows]).unsqueeze(1)
    assert torch.equal(every[0].in_order(gathered), x[:, :length].reshape(-1, 1))


LENGTH = 16


@pytest.mark.parametrize(
    ("schedule", "mesh", "context", "mtp", "recompute"),
    [
        ("1f1b", (1, 2, 1), 2, 1, False),
        ("dualpipe", (2, 2, 1), 2, 1, True),
        ("dualpipev", (2, 1, 2), 2, 0, False),
        ("1f1b", (1, 2, 2), 4, 0, True),
        pytest.param("zbv", (2, 2, 1), 2, 1, False, marks=pytest.mark.slow),
        pytest.param("dualpipe", (2, 2, 2), 2, 1, True, marks=pytest.mark.slow),
    ],
)
def test_ranks_that_share_sequences_give_the_numbers_of_one_process(
    schedule: str, mesh: tuple[int, int, int], context: int, mtp: int, recompute: bool
) -> None:
    """Losses, balance, norms, gradients, weights, router bias and the evaluation; with and without
    experts of their own."""
    reference = run_case(Process(), Case("1f1b", (1, 1, 1), mtp, False, False, length=LENGTH))
    case = Case(schedule, mesh, mtp, recompute, True, context=context, length=LENGTH)
    world = mesh[0] * mesh[1] * mesh[2]
    for rank, (result,) in enumerate(run_world(world, run_cases, [case])):
        compare(f"{case} on rank {rank}", result, reference)
