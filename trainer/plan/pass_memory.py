"""What the passes of a stage hold and need, found by running them.

The stage's own modules run forward and backward in the real executor, at the config's sizes, and
the storages that live are counted: of torch's fake tensors, where nothing is computed, for a GPU;
of real ones on a CPU. Tokens choose experts as evenly as can be.

Of a stage's layers with experts four run: what the third adds, each further one adds (a test
holds this).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from parallel.expert.all_to_all import InFlight
from parallel.schedule.table import Kind
from parallel.tape.recorder import What
from trainer.config.derived import mesh_of
from trainer.config.schema import Config
from trainer.dry.memory import LiveBytes
from trainer.plan.observed import observed
from trainer.plan.one_stage import PASSES, StageKind, run_passes
from trainer.plan.traffic import tokens_of_micro_batch

_NO_TURN = ("counts", "activation", "gradient")  # waits at which a pass does not yield
_RUN = 4  # layers with experts, of those of a stage


@dataclass(frozen=True)
class Leg:
    """What a pass does between two waits for all-to-alls. Bytes beyond those at its start.

    peak: the most. exchanging: of these, what an all-to-all in flight has sent and receives. end,
    flying: both at the end of the leg.
    """

    peak: int
    exchanging: int
    end: int
    flying: int

    def raised(self, by: int) -> Leg:
        return replace(self, peak=self.peak + by, end=self.end + by)


@dataclass(frozen=True)
class StageMemory:
    """The passes of a stage, for one micro-batch. What they receive from the pipeline is theirs,
    what they send is not. kept: by a step, from the first micro-batch on: weights in fp8."""

    passes: Mapping[Kind, tuple[Leg, ...]]
    kept: int = 0

    @property
    def held(self) -> int:
        """What the tape keeps from F to B or I."""
        return self.passes["F"][-1].end

    @property
    def pending(self) -> int:
        """And from I to W."""
        return self.held + self.passes["I"][-1].end


def stage_memory(config: Config, kind: StageKind, run: int = _RUN) -> StageMemory:
    """Run the passes of a stage, with at most `run` of its layers with experts, 4 or more. On a
    rank that has all experts there are no all-to-alls between layers, and all of them run; with
    fp8, too, whose weights are kept."""
    short = kind
    if mesh_of(config).expert > 1 and config.precision.linear != "fp8":
        short = replace(kind, experts=min(kind.experts, run))
    return lengthened(_passes(config, short), kind.experts - short.experts)


def lengthened(short: StageMemory, layers: int) -> StageMemory:
    """With so many more layers with experts than the four of `short`."""
    if not layers:
        return short
    through: tuple[Kind, ...] = ("F", "B", "I")
    passes = {kind: _repeated(short.passes[kind], kind, layers) for kind in through}
    pending = passes["F"][-1].end + passes["I"][-1].end
    (weights,) = short.passes["W"]  # whose peak is in what it computes first
    return StageMemory({**passes, "W": (replace(weights, end=-pending),)})


def _repeated(legs: tuple[Leg, ...], kind: Kind, layers: int) -> tuple[Leg, ...]:
    """From one layer's experts to the next layer's are two legs; F comes to the layers first, and
    backwards last."""
    first = 2 if kind == "F" else len(legs) - 4
    step = legs[first + 1].end - legs[first - 1].end
    more = [leg.raised(step * n) for n in range(layers) for leg in legs[first : first + 2]]
    return (*legs[:first], *more, *(leg.raised(step * layers) for leg in legs[first:]))


@dataclass(frozen=True)
class _Asked:
    """A stage of a config. depends: on what of the config, as text."""

    kind: StageKind
    depends: str
    config: Config = field(compare=False)


def _passes(config: Config, kind: StageKind) -> StageMemory:
    tokens = tokens_of_micro_batch(config, mesh_of(config))
    depends = (
        config.model, config.recompute, config.precision, config.mesh.expert,
        config.pipeline.overlap, config.data.sequence_length, tokens, config.run.device,
        config.run.attention,
    )  # fmt: skip
    return _run(_Asked(kind, repr(depends), config))


@functools.lru_cache(maxsize=256)
def _run(asked: _Asked) -> StageMemory:
    """Once for all plans that differ in nothing that it depends on."""
    follower, config = _Follower(), asked.config
    with observed(config, 0, mesh_of(config).expert, follower.flying) as memory:
        follower.memory = memory
        ran = run_passes(config, asked.kind, follower)
    legs = {kind: legs for (kind, _), legs in zip(ran, follower.items, strict=True)}
    first, measured = follower.starts[0], follower.starts[len(ran) - len(PASSES)]
    return StageMemory(legs, kept=measured - first)


class _Follower:
    """A recorder that keeps the legs of every item, and the bytes before each."""

    memory: LiveBytes

    def __init__(self) -> None:
        self.items: list[tuple[Leg, ...]] = []
        self.starts: list[int] = []
        self._legs: list[Leg] = []
        self._start = 0
        self._in_flight = 0

    def flying(self) -> int:
        return self._in_flight

    def note(self, doing: str) -> None:
        self._leg_ends()
        self.items.append(tuple(self._legs))
        self._legs = []
        self._start = self._bytes()
        self.starts.append(self._start)
        if len(self.starts) == 1:
            self.items.clear()

    @contextmanager
    def span(self, label: str, what: What, name: str, layer: str = "") -> Iterator[None]:
        if what == "wait" and name not in _NO_TURN:
            self._leg_ends()
        yield
        if what == "wait":
            self._in_flight = 0

    def flight(self, label: str, name: str, start: float, pending: object) -> None:
        rows = getattr(pending, "inner", pending)  # beneath what reads them, where they are in fp8
        if isinstance(rows, InFlight):
            tensors = (*rows.sent, *rows.received)
            self._in_flight = sum(tensor.nbytes for tensor in tensors)

    def _leg_ends(self) -> None:
        self.memory.look()
        peak = sum(self.memory.peak.values()) - self._start
        at_peak = self.memory.peak_where
        exchanging = at_peak if isinstance(at_peak, int) else 0
        self._legs.append(Leg(peak, exchanging, self._bytes() - self._start, self._in_flight))
        self.memory.forget_peak()

    def _bytes(self) -> int:
        return sum(self.memory.now().values())
