"""Options of launch/prepare.py for the quality of the text."""

from __future__ import annotations

import argparse
from pathlib import Path

from parallel.files.outputs import require_outputs
from trainer.io.command_parser import CommandParser
from trainer.io.option_types import number, whole_number
from trainer.prepare.quality.options import QualityOptions


def add_quality_options(parser: CommandParser) -> None:
    """--dedup, --decontaminate, --report and what belongs to them."""
    add = parser.add_argument_group("quality, found by a pass before").add_argument
    add("--dedup", choices=("exact", "near"),
        help="leave out documents that repeat an earlier one: exactly, or nearly, too")  # fmt: skip
    add("--near", type=number(0.5, 0.99), metavar="X",
        help="Jaccard similarity of words that makes a near repeat (0.8)")  # fmt: skip
    add("--decontaminate", nargs="+", default=[], metavar="FILE",
        help="texts or JSON lines; leave out documents that share words with one")  # fmt: skip
    add("--ngram", type=whole_number(2, 1000), metavar="N",
        help="words in a row that are too many to share with one (13)")  # fmt: skip
    add("--common", type=whole_number(1), metavar="N",
        help="words that more than N documents have are no sign: licences, say (10)")  # fmt: skip
    add("--evaluation-field", metavar="NAME", help="field of JSON lines there (text)")
    add("--report", type=Path, metavar="FILE.html", help="write what was found as a page")


def quality_options(parser: CommandParser, given: argparse.Namespace) -> QualityOptions | None:
    """What was asked for; None where nothing was. Ends the command for what would be ignored.
    Raises OutputError for a report that cannot be written."""
    if given.dedup != "near":
        parser.refuse(given, ["--near"], "without --dedup near")
    if not given.decontaminate:
        parser.refuse(
            given, ["--ngram", "--common", "--evaluation-field"], "without --decontaminate"
        )
    if given.report is not None:
        require_outputs({"--report": given.report}, ["--report"])
    elif not given.dedup and not given.decontaminate:
        return None
    default = QualityOptions()
    return QualityOptions(
        given.dedup,
        default.near if given.near is None else given.near,
        tuple(given.decontaminate),
        given.evaluation_field or default.evaluation_field,
        given.ngram or default.ngram,
        given.common or default.common,
        given.seed,
    )
