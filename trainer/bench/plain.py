"""What the engine costs: the same layers through the tape and the executor, and as plain modules
under ordinary autograd, in turns in one process. No optimizer: forward and backward passes of all
micro-batches, into gradients that start at zero."""

from __future__ import annotations

from functools import partial

from parallel.ranks.process import Process
from trainer.bench.engine import engine_gradients, engine_step
from trainer.bench.plain_model import PlainStage, cross_entropy
from trainer.bench.results import (
    ROUNDING,
    Case,
    gradients_agree,
    losses_agree,
    require_same,
    side_of,
)
from trainer.bench.throughput import random_tokens
from trainer.bench.turns import OnProgress, Step, Turns, take_turns, timed
from trainer.build.layout import Layout, build
from trainer.config.schema import Config


def against_plain(name: str, config: Config, turns: Turns, progress: OnProgress) -> list[Case]:
    """config: of layers without experts on one process."""
    process = Process()
    layout = build(config, process, process.device(config.run.device))
    plain = PlainStage(config, range(config.model.layers), first=True, last=True)
    plain.load_state_dict(layout.part.state_dict())
    plain.to(layout.device)
    ours, theirs = take_turns(
        [engine_step(layout), _plain_step(layout, plain)],
        turns,
        partial(timed, device=layout.device),
        progress,
    )
    sides = side_of("Tandem", [ours], turns.warmup), side_of("plain", [theirs], turns.warmup)
    allowed = ROUNDING[config.precision.parameters]
    gradients = gradients_agree(
        engine_gradients(layout),
        {name: p.grad for name, p in plain.named_parameters() if p.grad is not None},
        allowed,
    )
    agreements = losses_agree(*sides, allowed), gradients
    tokens = config.data.global_batch * config.data.sequence_length
    return [require_same(Case(name, tokens, *sides, agreements))]


def _plain_step(layout: Layout, plain: PlainStage) -> Step:
    count, length = layout.config.pipeline.micro_batches, layout.config.data.sequence_length

    def step(batch: int) -> float:
        plain.zero_grad()
        total = 0.0
        for part in random_tokens(layout.config, batch).to(layout.device).chunk(count):
            loss = cross_entropy(plain(part[:, :length]), part[:, 1:]) / count
            loss.backward()
            total += loss.item()
        return total

    return step
