"""What the engine costs: our layers through the tape and the executor; the same as plain modules
with torch's kernels; and the same with our kernels, without the engine. All three take turns in one
process. No optimizer: forward and backward passes of all micro-batches, into gradients that start
at zero.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from parallel.ranks.process import Process
from parallel.tape.passes import run
from parallel.tape.tape import Tape
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
    device = process.device(config.run.device)
    ours, bare = (build(config, process, device) for _ in range(2))
    plain = PlainStage(config, range(config.model.layers), first=True, last=True)
    plain.load_state_dict(ours.part.state_dict())
    plain.to(device)
    steps = [engine_step(ours), _plain_step(config, plain), _bare_step(bare)]
    found = take_turns(steps, turns, partial(timed, device=device), progress)
    gradients = engine_gradients(ours)
    engine = side_of("Tandem", [found[0]], turns.warmup)
    tokens = config.data.global_batch * config.data.sequence_length
    allowed = ROUNDING[config.precision.parameters]
    cases = []
    for case, side, of, theirs in (
        (name, "plain modules", found[1], _gradients(plain)),
        (f"{name}, kernels", "our kernels, no engine", found[2], engine_gradients(bare)),
    ):
        other = side_of(side, [of], turns.warmup)
        agreements = (
            losses_agree(engine, other, allowed),
            gradients_agree(gradients, theirs, allowed),
        )
        cases.append(require_same(Case(case, tokens, engine, other, agreements)))
    return cases


def _plain_step(config: Config, plain: PlainStage) -> Step:
    count, length = config.pipeline.micro_batches, config.data.sequence_length
    device = next(plain.parameters()).device

    def step(batch: int) -> float:
        plain.zero_grad()
        total = 0.0
        for part in random_tokens(config, batch).to(device).chunk(count):
            loss = cross_entropy(plain(part[:, :length]), part[:, 1:]) / count
            loss.backward()
            total += loss.item()
        return total

    return step


def _bare_step(layout: Layout) -> Step:
    """The layers of `layout` under ordinary autograd; weight gradients run after each backward."""
    config, part = layout.config, layout.part
    ops = part.options.ops
    count, length = config.pipeline.micro_batches, config.data.sequence_length
    targets = config.data.global_batch * length

    def step(batch: int) -> float:
        layout.optimizer.zero()
        total = 0.0
        for tokens in random_tokens(config, batch).to(layout.device).chunk(count):
            tape = Tape(training=False)  # records nothing, and leaves the graph alone
            x_TD = part.embed_tokens(tokens[:, :length].flatten())
            for layer in range(config.model.layers):
                x_TD = run(part.layer(layer)(tape, x_TD))
            target_T = tokens[:, 1:].flatten()
            summed = ops.cross_entropy(part.norm(x_TD), part.lm_head.weight, target_T)
            (summed / targets).backward()
            ops.deferred.drain()
            total += summed.item() / targets
        return total

    return step


def _gradients(plain: PlainStage) -> dict[str, Tensor]:
    return {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
