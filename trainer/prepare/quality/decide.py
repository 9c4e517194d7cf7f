"""Which documents are kept, as what was found in them comes, chunk by chunk in order."""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np

from trainer.prepare.quality.common import Common
from trainer.prepare.quality.dropped import REASONS, Dropped, Reason, numbers_fingerprint
from trainer.prepare.quality.evaluation import Evaluation
from trainer.prepare.quality.examine import Shared
from trainer.prepare.quality.examined_file import Entry
from trainer.prepare.quality.options import QualityOptions
from trainer.prepare.quality.repeats import Repeats
from trainer.prepare.quality.statistics import Statistics

_EXAMPLES = 20


class Decide:
    """A document with words of an evaluation text is none that others could repeat."""

    def __init__(
        self,
        options: QualityOptions,
        files: Sequence[str],
        evaluation: Evaluation,
        common: Common,
        out: TextIO,
    ) -> None:
        """files: names of the source's. common: has noted all entries. out: takes a line for each
        document that is left out. Raises DataError without datasketch, where it is needed."""
        self._files, self._evaluation, self._out = files, evaluation, out
        self._common = common
        self._repeats = Repeats(options.dedup, options.near)
        self._kept = Statistics()
        self._places = array("i"), array("q")  # file and line of each document
        self._numbers: list[int] = []
        self._documents: Counter[Reason] = Counter()
        self._bytes: Counter[Reason] = Counter()
        self._examples: dict[Reason, list[Dropped]] = {reason: [] for reason in REASONS}
        self._found: set[int] = set()

    def take(self, entry: Entry) -> None:
        """Raises OSError where the disk is full."""
        examined = entry.examined
        self._places[0].extend(entry.files.tolist())
        self._places[1].extend(entry.lines.tolist())
        shared: dict[int, list[Shared]] = defaultdict(list)
        for each in examined.shared:
            shared[each.place].append(each)
        kept = set()
        for place, number in enumerate(entry.numbers.tolist()):
            length = int(examined.lengths[place])
            dropped = self._dropped(entry, place, number, length, shared[place])
            if dropped is not None:
                self._drop(dropped)
                continue
            kept.add(place)
            file, line = self._where(number)
            scripts, language = examined.scripts[place], examined.languages[place]
            self._kept.note(number, file, line, length, scripts, language)
        numbers = entry.numbers.tolist()
        samples = [sample for sample in examined.samples if sample.place in kept]
        self._kept.show([(*self._where(numbers[sample.place]), sample) for sample in samples])

    @property
    def numbers(self) -> list[int]:
        """Of the documents that are left out, in order."""
        return self._numbers

    def as_json(self) -> dict[str, Any]:
        """What was found, in numbers. read: all documents; dropped: by reason; kept: the rest."""
        kept = self._kept.as_json()
        dropped = {
            reason: {"documents": self._documents[reason], "bytes": self._bytes[reason]}
            for reason in REASONS
        }
        read = {
            key: kept[key] + sum(each[key] for each in dropped.values())
            for key in ("documents", "bytes")
        }
        found: dict[str, Any] = {"read": read, "dropped": dropped, "kept": kept}
        if self._evaluation.places:
            found["evaluation"] = {
                "texts": len(self._evaluation.places), "too_short": self._evaluation.short,
                "ngrams": len(self._evaluation.hashes), "found": len(self._found),
                "common": self._common.count,
            }  # fmt: skip
        return found | {"fingerprint": numbers_fingerprint(self._numbers)}

    def examples(self) -> dict[str, Any]:
        """The first that are left out for each reason, texts with common words, the largest that
        are kept, and samples."""
        first = {k: [each.as_json() for each in some] for k, some in self._examples.items()}
        return {"dropped": first, "common": self._common.examples(), **self._kept.examples()}

    def _dropped(
        self, entry: Entry, place: int, number: int, length: int, shared: Sequence[Shared]
    ) -> Dropped | None:
        file, line = self._where(number)
        for stretch in shared:
            rare = self._common.first_rare(stretch.words)
            if rare is not None:
                words, text = rare
                self._found.add(text)
                of_file, of_line = self._evaluation.places[text]
                return Dropped(
                    number, "evaluation", file, line or stretch.line, length, of_file, of_line,
                    words=words,
                )  # fmt: skip
        digest, signature = entry.examined.digests[place], entry.examined.signatures[place]
        earlier = self._repeats.earlier(number, digest.tobytes(), np.asarray(signature))
        if earlier is None:
            return None
        reason: Reason = "exact" if earlier.similarity is None else "near"
        of_file, of_line = self._where(earlier.number)
        return Dropped(number, reason, file, line, length, of_file, of_line, earlier.similarity)

    def _drop(self, dropped: Dropped) -> None:
        self._numbers.append(dropped.number)
        self._documents[dropped.reason] += 1
        self._bytes[dropped.reason] += dropped.bytes
        if len(self._examples[dropped.reason]) < _EXAMPLES:
            self._examples[dropped.reason].append(dropped)
        self._out.write(json.dumps(dropped.as_json()) + "\n")

    def _where(self, number: int) -> tuple[str, int]:
        return self._files[self._places[0][number]], self._places[1][number]
