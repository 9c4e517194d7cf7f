"""Texts that are made together, shown one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from trainer.generate.answer import Answer
from trainer.generate.output import Output
from trainer.generate.question import Question


class InOrder:
    """Shows the first answer that is not complete as it comes, and keeps the later ones."""

    def __init__(self, asked: Sequence[Question], output: Output) -> None:
        self._asked, self._output = asked, output
        self._current = 0
        self._kept: list[list[int]] = [[] for _ in asked]
        self._made: dict[int, Answer] = {}
        output.start(asked[0])

    def pusher(self, number: int) -> Callable[[int], None]:
        """What takes the tokens of answer `number`."""
        return partial(self._push, number)

    def finish(self, number: int, made: Answer) -> None:
        """Answer `number` is complete."""
        self._made[number] = made
        while self._current in self._made:
            self._output.finish(self._asked[self._current], self._made.pop(self._current), None)
            self._current += 1
            if self._current < len(self._asked):
                self._output.start(self._asked[self._current])
                for token in self._kept[self._current]:
                    self._output.push(token)

    def _push(self, number: int, token: int) -> None:
        if number == self._current:
            self._output.push(token)
        else:
            self._kept[number].append(token)
