"""Sequences of several sources, by weights that may change in the course of a run.

Each source comes up at even distances: the j-th time (from 0) when the sum of its shares, over the
sequences so far, has reached j plus an offset of its own. So of any number of sequences each source
has its share to within one sequence and a few that others have late; and which source sequence n
comes from, and which of its sequences that is, follows from n alone.

Times are counted in sequences of the whole mixture, as if they could be split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from trainer.data.sequences import Sequences
from trainer.data.tokens import Tokens

_AT_ONCE = 64  # turns that are computed in a row


@dataclass(frozen=True)
class Phase:
    """start: the running sequence from which it holds. shares: of each source, together 1."""

    start: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Turn:
    """source: its number. index: which of its running sequences."""

    source: int
    index: int


@dataclass(frozen=True)
class Interleaving:
    """phases: in order, the first from 0."""

    phases: tuple[Phase, ...]

    def turns(self, first: int, count: int) -> list[Turn]:
        """Of running sequences first .. first + count - 1."""
        found = []
        taken, order = self._before(first)
        for number in range(order, first + count):
            source = self._next(taken)
            if number >= first:
                found.append(Turn(source, taken[source]))
            taken[source] += 1
        return found

    def taken(self, sequences: int) -> list[int]:
        """Of each source, among the first so many."""
        taken, order = self._before(sequences)
        for _ in range(order, sequences):
            taken[self._next(taken)] += 1
        return taken

    def _next(self, taken: list[int]) -> int:
        """The source that comes up after so many turns of each; of two at once the first."""
        return min(range(len(taken)), key=lambda source: self._time(source, taken[source]))

    def _before(self, first: int) -> tuple[list[int], int]:
        """(turns that each source has had at some time, their sum), close to, but not beyond, the
        first `first` turns."""
        time = max(0.0, first - 2.0 * len(self._offsets))
        taken = [self._count(source, time) for source in range(len(self._offsets))]
        while sum(taken) > first:
            time = max(0.0, time - len(taken))
            taken = [self._count(source, time) for source in range(len(taken))]
        return taken, sum(taken)

    def _count(self, source: int, time: float) -> int:
        """How many turns a source has had before a time."""
        count = max(0, int(self._reached(source, time) - self._offsets[source]))
        while count and self._time(source, count - 1) >= time:
            count -= 1
        while self._time(source, count) < time:
            count += 1
        return count

    def _reached(self, source: int, time: float) -> float:
        """The sum of a source's shares up to a time."""
        total = 0.0
        for phase, end in zip(self.phases, self._ends):
            total += phase.shares[source] * (min(time, end) - phase.start)
            if time <= end:
                break
        return total

    def _time(self, source: int, turn: int) -> float:
        """When a source has its turn; never where it has no more."""
        wanted, total = turn + self._offsets[source], 0.0
        for phase, end in zip(self.phases, self._ends):
            share = phase.shares[source]
            gained = share * (end - phase.start) if share else 0.0
            if share and total + gained >= wanted:
                return phase.start + (wanted - total) / share
            total += gained
        return float("inf")

    @cached_property
    def _ends(self) -> tuple[float, ...]:
        return (*(float(phase.start) for phase in self.phases[1:]), float("inf"))

    @cached_property
    def _offsets(self) -> tuple[float, ...]:
        """Half a turn on average, so that sources are neither early nor late together."""
        sources = len(self.phases[0].shares)
        return tuple((source + 0.5) / sources for source in range(sources))


class MixedSequences:
    """names: of the sources, in the order of `sources`."""

    def __init__(
        self, names: Sequence[str], sources: Sequence[Sequences], interleaving: Interleaving
    ) -> None:
        self.names, self.sources, self.interleaving = names, sources, interleaving
        self._cached: tuple[range, list[Turn]] = range(0), []

    @property
    def sequence_length(self) -> int:
        return self.sources[0].sequence_length

    def window(self, index: int) -> Tokens:
        turn = self.turn(index)
        return self.sources[turn.source].window(turn.index)

    def origin(self, index: int) -> str:
        turn = self.turn(index)
        return f"{self.names[turn.source]}: {self.sources[turn.source].origin(turn.index)}"

    def epochs(self, sequences: int) -> dict[str, float]:
        taken = self.interleaving.taken(sequences)
        return {
            name: source.epochs(count)[""]
            for name, source, count in zip(self.names, self.sources, taken)
        }

    def turn(self, index: int) -> Turn:
        """Whose sequence this is. A few that follow are computed along."""
        numbers, turns = self._cached
        if index not in numbers:
            numbers = range(index, index + _AT_ONCE)
            turns = self.interleaving.turns(index, _AT_ONCE)
            self._cached = numbers, turns
        return turns[index - numbers.start]
