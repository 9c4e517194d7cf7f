"""Prepare text for training: tokens in files of any size, from which a run starts in seconds.

SOURCE is a text file, a folder of them, JSON lines (.jsonl) or parquet; all but the last may be
.gz or .zst. `stdlib` is the source text of Python's standard library, `package:NAME` that of an
installed package.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.files.shown import printable
from trainer.io.command_parser import CommandParser
from trainer.io.option_types import number, whole_number
from trainer.prepare.quality.command import add_quality_options, quality_options
from trainer.run.exit import guarded

if TYPE_CHECKING:
    from trainer.prepare.left_out import LeftOut
    from trainer.prepare.prepare import Done, Preparation
    from trainer.prepare.quality.findings import Findings
    from trainer.prepare.quality.options import QualityOptions
    from trainer.prepare.source import Source

EXAMPLES = """\
examples:
  python launch/prepare.py stdlib --out shards/python --train-tokenizer 4096
  python launch/prepare.py web/*.jsonl.zst --tokenizer DeepSeek-V3 --out shards/web --workers 32
  python launch/prepare.py code --tokenizer DeepSeek-V3 --out shards/code --fill-in-middle 0.1
  python launch/prepare.py web --out shards/web --dedup near --decontaminate gsm8k.jsonl \\
      --evaluation-field question --report web.html
  torchrun --nproc-per-node 2 launch/train.py --config configs/cpu_2proc.yaml \\
      --data.path shards/python --model.vocab_size 4096

The same files and options give the same bytes, whatever --workers. Started again after it was
interrupted, it goes on where it was. A document that cannot be read ends it with one line that
names file and line; --skip-bad leaves such documents out, and counts them. Documents are held out
by their number; fill in the middle and split tokens are for those to train on. docs/data.md has the
format, docs/quality.md what --dedup, --decontaminate and --report do. The exit code is 0; 1 for
text that cannot be read or a full disk; 2 for wrong arguments; 130 for Ctrl-C.
"""
STDLIB = "stdlib"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return guarded("prepare", lambda: _run(options, quality_options(parser, options)))


def _parser() -> CommandParser:
    parser = CommandParser("prepare", __doc__, EXAMPLES)
    add = parser.add_argument
    add("source", nargs="+", metavar="SOURCE", help="files and folders, in this order; or stdlib")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--tokenizer", metavar="DIR", help="a tokenizer.json, or a folder with one; else bytes"
    )
    which.add_argument(
        "--train-tokenizer", type=whole_number(265, 1 << 20), metavar="N",
        help="first learn a byte-level BPE of N tokens from the text",
    )  # fmt: skip
    add("--tokenizer-bytes", type=whole_number(1, 1 << 40), default=1 << 28, metavar="N",
        help="of text that --train-tokenizer learns from, the first ones (2^28)")  # fmt: skip
    add("--text-field", default="text", metavar="NAME", help="field or column with the text (text)")
    add("--validation-fraction", type=number(0, 0.9), default=0.005, metavar="X",
        help="share of the documents that is held out (0.005)")  # fmt: skip
    add("--fill-in-middle", type=number(0, 1), default=0.0, metavar="X",
        help="share of documents to write as beginning, end, middle (0; V3 0.1)")  # fmt: skip
    add("--split-joined", type=number(0, 1), default=0.0, metavar="X",
        help="share of the tokens of punctuation and line breaks to split (0)")  # fmt: skip
    add("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of what is random (0)")
    add("--shard-tokens", type=whole_number(1000, 1 << 40), default=500_000_000, metavar="N",
        help="tokens of a shard, about (500,000,000)")  # fmt: skip
    add("--workers", type=whole_number(0, 4096), default=os.cpu_count() or 1, metavar="N",
        help="processes that encode; 0 for none but this one (one per core)")  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out documents that cannot be read")
    add("--overwrite", action="store_true", help="replace prepared text in DIR, or part of some")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add_quality_options(parser)
    return parser


def _run(options: argparse.Namespace, quality: QualityOptions | None) -> int:
    from trainer.io.byte_progress import byte_progress
    from trainer.prepare.left_out import LeftOut
    from trainer.prepare.place import claim_place, keep_tokenizer
    from trainer.prepare.prepare import prepare
    from trainer.prepare.quality.page.page import write_report
    from trainer.prepare.source import Source

    paths = [None if path == STDLIB else path for path in options.source]
    with claim_place(options.out, options.overwrite):
        source = Source(paths, options.text_field)
        found = _found(source, quality, options) if quality is not None else None
        left_out = found.left_out() if found is not None else LeftOut()
        tokenizer = keep_tokenizer(options.out, options.tokenizer)
        if options.train_tokenizer:
            tokenizer = _trained(source, left_out, options)
        with byte_progress("preparing") as show:
            done = prepare(_preparation(source, tokenizer, left_out, options), options.out, show)
    if found is not None and options.report is not None:
        write_report(options.report, options.out, found, done.index)
    _report(done, found, options)
    return 0


def _found(source: Source, quality: QualityOptions, options: argparse.Namespace) -> Findings:
    from trainer.io.byte_progress import byte_progress
    from trainer.prepare.quality.first_pass import FirstPass

    with byte_progress("looking at the text") as show:
        look = FirstPass(source, quality, options.workers, options.skip_bad)
        return look.run(options.out, show)


def _trained(source: Source, left_out: LeftOut, options: argparse.Namespace) -> str:
    """The tokenizer that --train-tokenizer asks for; the one that is there if this goes on."""
    from trainer.data.file_tokenizer import TOKENIZER_FILE, load_tokenizer
    from trainer.data.shards.index import TOKENIZER_FOLDER
    from trainer.io.terminal import plain_console
    from trainer.prepare.progress_file import PROGRESS_FILE
    from trainer.prepare.source import Skipped
    from trainer.prepare.train_tokenizer import first_texts, train_tokenizer

    folder: Path = options.out / TOKENIZER_FOLDER
    begun = (options.out / PROGRESS_FILE).exists() and (folder / TOKENIZER_FILE).exists()
    if begun and load_tokenizer(str(folder)).vocabulary_size == options.train_tokenizer:
        return str(folder)
    console = plain_console(stderr=True)
    with console.status("learning a vocabulary", spinner="line"):
        skipped = Skipped() if options.skip_bad else None
        texts = first_texts(source, options.tokenizer_bytes, skipped, left_out.numbers)
        train_tokenizer(texts, options.train_tokenizer, folder)
    return str(folder)


def _preparation(
    source: Source, tokenizer: str | None, left_out: LeftOut, options: argparse.Namespace
) -> Preparation:
    from trainer.prepare.encoder import EncodeOptions
    from trainer.prepare.prepare import Preparation

    encode = EncodeOptions(
        tokenizer, options.seed, options.validation_fraction, options.fill_in_middle,
        options.split_joined,
    )  # fmt: skip
    return Preparation(
        source, encode, options.workers, options.shard_tokens, options.skip_bad, left_out
    )


def _report(done: Done, found: Findings | None, options: argparse.Namespace) -> None:
    from trainer.prepare.quality.summary import summary

    index = done.index
    if options.json:
        said = asdict(index) | {
            "out": str(options.out), "bytes": done.bytes, "seconds": done.seconds,
            "skipped": {"count": done.skipped.count, "first": done.skipped.shown},
        }  # fmt: skip
        if found is not None:
            said["quality"] = {**found.figures, "seconds": found.seconds}
        print(json.dumps(said, indent=2))
        return
    for line in summary(found) if found is not None else ():
        print(line)
    for split in index.splits:
        documents, tokens = index.documents(split), index.tokens(split)
        print(f"{split}: {tokens:,} tokens in {documents:,} documents, "
              f"{len(index.splits[split])} shards of {index.token_type}")  # fmt: skip
    total = sum(index.tokens(split) for split in index.splits)
    print(
        f"{printable(options.out)}: {done.bytes / 1e6:,.1f} MB of text, "
        f"{done.bytes / max(1, total):.2f} bytes per token, in {done.seconds:,.1f} s "
        f"({done.bytes / 1e6 / done.seconds:,.1f} MB/s)"
    )
    for line in done.skipped.shown:
        print(f"skipped: {printable(line)}")
    if done.skipped.count > len(done.skipped.shown):
        print(f"skipped: {done.skipped.count:,} documents in all")


if __name__ == "__main__":
    sys.exit(main())
