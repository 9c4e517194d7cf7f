"""Convert a checkpoint in the Hugging Face layout to another type of weights, or look at one.

SOURCE and TARGET are folders with config.json and safetensors, named as the released DeepSeek-V3
and V2 checkpoints are. One file after the other is converted, so that memory holds one file.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import yaml
from rich.console import Console
from rich.table import Table

from trainer.checkpoint.hf.conversion import checked_model, plan_conversion
from trainer.checkpoint.hf.convert import convert, require_place
from trainer.checkpoint.hf.reader import Checkpoint
from trainer.checkpoint.hf.summary import Summary, summarise
from trainer.errors import ConfigError, RunError
from trainer.io.byte_progress import byte_progress
from trainer.io.command_parser import CommandParser

EXAMPLES = """\
examples:
  python launch/convert.py DeepSeek-V3 DeepSeek-V3-bf16 --dtype bfloat16
  python launch/convert.py runs/mine/weights mine-fp8 --dtype fp8 --without-mtp
  python launch/convert.py DeepSeek-V3 --check
  python launch/convert.py DeepSeek-V3 --print-config > mine.yaml

fp8 is for the matrices of attention and MLPs, in blocks of 128 x 128 with a float32 scale each, and
bfloat16 for the rest, as in the released checkpoints; the router bias is float32 in every type.
Tokenizer, generation config and licences go along; Python files do not. What is wrong with SOURCE
is found before anything is written, and TARGET gets its name only when it is whole. The exit code
is 0, 1 for a checkpoint that is wrong or cannot be written, 2 for a config.json that is not
supported or wrong arguments. docs/weights.md has more.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    before = _identity(options.target)
    try:
        return _run(options)
    except (RunError, ConfigError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        written = _identity(options.target) not in (None, before)
        what = f"{options.target} is written and whole" if written else "nothing written"
        print(f"convert: stopped by Ctrl-C, {what}", file=sys.stderr)
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("convert", __doc__, EXAMPLES)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder of the checkpoint to read")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("target", type=Path, nargs="?", metavar="TARGET", help="folder to write")
    what.add_argument("--check", action="store_true", help="only check SOURCE and describe it")
    what.add_argument(
        "--print-config", action="store_true", help="only print its `model:` for launch/train.py"
    )
    types = ("keep", "float32", "bfloat16", "fp8")
    add("--dtype", choices=types, default="keep", help="type of the weights in TARGET (keep)")
    add("--without-mtp", action="store_true", help="leave out the modules of MTP")
    add("--overwrite", action="store_true", help="replace TARGET if it is a checkpoint")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _run(options: argparse.Namespace) -> int:
    source = Checkpoint(options.source)
    if options.check:
        found = summarise(source)
        print(json.dumps(found.as_json(), indent=2)) if options.json else _show(found)
        return 1 if found.problem else 0
    if options.print_config:
        model = dataclasses.replace(checked_model(source), init_from=str(options.source.resolve()))
        print(yaml.safe_dump({"model": dataclasses.asdict(model)}, sort_keys=False), end="")
        return 0
    conversion = plan_conversion(source, options.dtype, options.without_mtp)
    require_place(conversion, options.target, options.overwrite)
    begin = time.monotonic()
    with byte_progress("converting") as progress:
        convert(conversion, options.target, progress)
    seconds = time.monotonic() - begin
    tensors, files = len(conversion.tensors), len(conversion.by_file())
    if options.json:
        done = {"target": str(options.target), "dtype": options.dtype, "files": files}
        done |= {"tensors": tensors, "bytes": conversion.nbytes, "seconds": seconds}
        print(json.dumps(done, indent=2))
    else:
        print(
            f"{options.target}: {tensors:,} tensors in {files} file{'s' * (files > 1)}, "
            f"{conversion.nbytes / 1e9:,.3f} GB in {seconds:.1f} s"
        )
    return 0


def _show(found: Summary) -> None:
    table = Table(title=found.folder, show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("model_type", str(found.model_type))
    if found.parameters is not None:
        table.add_row("parameters", f"{found.parameters:,}")
        table.add_row("MTP depth", str(found.mtp_depth))
        table.add_row("parameters of MTP", f"{found.mtp_parameters:,}")
    table.add_row("tensors", f"{found.tensors:,}")
    table.add_row("files", f"{found.files:,}")
    for kind, size in found.bytes_by_type.items():
        table.add_row(f"bytes in {kind}", f"{size:,}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    print(f"wrong: {found.problem}" if found.problem else "every tensor is as config.json says")


def _identity(folder: Path | None) -> int | None:
    """What differs in a folder that takes the place of this one; None if there is none."""
    try:
        return None if folder is None else folder.stat().st_ino
    except OSError:
        return None


def _as_exit(number: int, _: FrameType | None) -> NoReturn:
    """A signal as an exception, so that what was begun is removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_exit)
    sys.exit(main())
