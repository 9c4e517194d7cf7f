"""The calls of all ranks of a world match; where they do not, the rank and the group are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parallel.ranks.mesh import RankSet
from parallel.ranks.process import Process
from parallel.schedule.lower import lower
from tests.distributed import run_world
from tests.test_dry_run import FOUR_RANKS, ROOT, config_of
from trainer.config.derived import mesh_of, schedule_of
from trainer.config.schema import Config
from trainer.dry.device import pretended_gpu
from trainer.dry.matching import mismatches
from trainer.dry.rank import dry_step
from trainer.dry.record import Call, Where
from trainer.dry.sequence import Entry, Sequence, sequence_of
from trainer.dry.verify import Verified, calls_of_all, check, representatives, verify


def compared(process: Process, config: Config) -> tuple[list[Call], list[Call]]:
    """The calls of rank 1 in all of a step, and as put together from distinct items."""
    program = lower(schedule_of(config)).programs[mesh_of(config).coordinate(1).pipeline]
    whole = dry_step(config, 1, pretended_gpu()).calls
    record = dry_step(config, 1, pretended_gpu(), distinct=True)
    entries = sequence_of(record, program, mesh_of(config).pipeline_group(1)).entries
    both = whole, [entry.call for entry in entries]
    first, second = ([call._replace(where=Where()) for call in calls] for calls in both)
    return first, second


@pytest.mark.parametrize(
    "schedule",
    ["dualpipe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dualpipev", "zbv"))],
)
def test_distinct_items_say_what_the_whole_step_calls(schedule: str) -> None:
    alone = ("--mesh.expert", "1", "--mesh.pipeline", "2", "--model.layers", "4")
    many = ("--pipeline.micro_batches", "6", "--data.global_batch", "6")
    config = config_of(*alone, *many, "--pipeline.schedule", schedule)
    whole, put_together = run_world(1, compared, config)[0]
    assert len(whole) > 16
    assert whole == put_together


def sequences_of(process: Process, config: Config) -> dict[int, Sequence]:
    return representatives(config)


@pytest.fixture(scope="module")
def sequences() -> dict[int, Sequence]:
    found: dict[int, Sequence] = run_world(1, sequences_of, config_of(*FOUR_RANKS))[0]
    return found


def test_all_ranks_match(sequences: dict[int, Sequence]) -> None:
    found = check(mesh_of(config_of(*FOUR_RANKS)), sequences)
    assert found.sound and found.world == 4
    assert found.channels == 4  # 0 <-> 2, 1 <-> 3
    assert found.calls == 2 * sum(len(sequence.entries) for sequence in sequences.values())


def missing(entries: list[Entry]) -> None:
    del entries[0]


def swapped(entries: list[Entry]) -> None:
    """The first with the next that differs from it."""
    first = entries[0]
    differs = [(e.form, e.message) != (first.form, first.message) for e in entries]
    other = differs.index(True)
    entries[0], entries[other] = entries[other], first


def resized(entries: list[Entry]) -> None:
    call = entries[0].call
    entries[0] = entries[0]._replace(call=call._replace(elements=call.elements + 1))


def more_rows(entries: list[Entry]) -> None:
    call = entries[0].call
    entries[0] = entries[0]._replace(call=call._replace(sent=(call.sent[0] + 1, *call.sent[1:])))


@pytest.mark.parametrize(
    "change, group",
    [
        *((change, (0, 1)) for change in (missing, swapped, resized, more_rows)),  # experts
        *((change, (0, 1, 2, 3)) for change in (missing, swapped, resized)),  # gradients
        *((change, (1, 3)) for change in (missing, swapped, resized)),  # a channel
    ],
)
def test_a_mismatch_is_named(
    sequences: dict[int, Sequence], change: Callable[[list[Entry]], None], group: RankSet
) -> None:
    """Rank 1 calls something else than it should on one of its groups."""
    calls = dict(calls_of_all(mesh_of(config_of(*FOUR_RANKS)), sequences))
    key = group == (1, 3), group
    entries = list(calls[1][key])
    change(entries)
    calls[1] = {**calls[1], key: tuple(entries)}
    (found,) = mismatches(calls)
    assert found.group == group
    assert found.rank == 1 or len(group) == 2  # of two that differ, either may be wrong
    assert found.number < len(entries)


def test_a_receive_that_is_posted_too_early_is_found(sequences: dict[int, Sequence]) -> None:
    """All calls match, but what rank 0 waits for depends on what it has not done yet."""
    entries = sorted(sequences[0].entries, key=lambda entry: entry.call.kind != "receive")
    found = check(mesh_of(config_of(*FOUR_RANKS)), {**sequences, 0: Sequence(tuple(entries))})
    assert not found.mismatches
    assert 0 in found.stuck


@pytest.mark.slow
def test_2048_ranks_match() -> None:
    config = config_of(file=str(ROOT / "configs" / "deepseek_v3_2048.yaml"))
    found = run_world(1, verified, config, timeout=900.0)[0]
    assert found.sound and found.world == 2048


def verified(process: Process, config: Config) -> Verified:
    return verify(config)


def test_uneven_routing_runs_every_expert_rank() -> None:
    found = run_world(1, verified, config_of("--data.sequence_length", "17"))[0]
    assert found.sound and found.run == (0, 1)
