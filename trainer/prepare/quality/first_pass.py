"""The first pass over a text: which documents to leave out of the second, and what the others are
like. Worker processes look at documents, and a file keeps what they find; then this one decides, in
the order of the documents, so that nothing depends on how many workers there are."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from trainer.prepare.quality.common import Common
from trainer.prepare.quality.decide import Decide
from trainer.prepare.quality.dropped import DROPPED_FILE
from trainer.prepare.quality.evaluation import Evaluation
from trainer.prepare.quality.examine import Examiner, examine_in_worker, start_examining
from trainer.prepare.quality.examined_file import ExaminedFile, entry_of
from trainer.prepare.quality.findings import Findings, load_findings, save_findings
from trainer.prepare.quality.options import QualityOptions
from trainer.prepare.source import Place, Skipped, Source
from trainer.prepare.workers import Workers

EXAMINED_FILE = "examined.part"
_VERSION = 1  # of what is looked for, and how
Show = Callable[[int, int], None]


@dataclass(frozen=True)
class FirstPass:
    """workers: processes that look at documents; 0: this one does."""

    source: Source
    options: QualityOptions
    workers: int
    skip_bad: bool

    def what(self, evaluation: Evaluation) -> str:
        """The same for the same findings."""
        options = {**asdict(self.options), "evaluation": evaluation.fingerprint()}
        parts = [_VERSION, self.source.fingerprint(), options, self.skip_bad]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def run(self, folder: Path, show: Show) -> Findings:
        """From where `folder` has some of it. show(done, total): bytes of files.

        Raises DataError, in one line, for a document or an evaluation text that cannot be read,
        without datasketch where it is needed, and where a worker is killed; OSError or WriteError
        where the disk is full.
        """
        begun = time.perf_counter()
        examiner = Examiner(self.options)
        what = self.what(examiner.evaluation)
        found = load_findings(folder, what)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        examined = ExaminedFile(folder / EXAMINED_FILE, what)
        files = [str(file.path) for file in self.source.files]
        common = Common(examiner.evaluation, self.options.common)
        try:
            self._look(examiner, examined, common, show)
            with open(folder / DROPPED_FILE, "w", encoding="utf-8") as out:
                decide = Decide(self.options, files, examiner.evaluation, common, out)
                for entry in examined.entries():
                    decide.take(entry)
        finally:
            examined.close()
        options = {k: v for k, v in asdict(self.options).items() if k != "seed"}
        figures = {"options": options, **decide.as_json()}
        seconds = time.perf_counter() - begun
        found = Findings(what, frozenset(decide.numbers), figures, decide.examples(), seconds)
        save_findings(folder, found)
        examined.remove()
        return found

    def _look(self, examiner: Examiner, examined: ExaminedFile, common: Common, show: Show) -> None:
        place, skipped = Place(), Skipped() if self.skip_bad else None
        for entry in examined.entries():
            common.note(entry)
            place, skipped = entry.end, entry.skipped if self.skip_bad else None
        start = partial(start_examining, self.options)
        work = partial(examine_in_worker, self.options)
        workers = Workers(self.workers, start, work, examiner.examine)
        total = self.source.bytes
        for chunk, found in workers.results(self.source.chunks(place, skipped)):
            entry = entry_of(chunk, found)
            examined.append(entry)
            common.note(entry)
            show(chunk.done, total)
