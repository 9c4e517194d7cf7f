"""Convert a checkpoint in the Hugging Face layout to another type of weights, or look at one.

SOURCE and TARGET are folders with config.json and safetensors, named as the released DeepSeek-V3
and V2 checkpoints are. One file after the other is converted, so that memory holds one file.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.files.shown import printable
from trainer.errors import ConfigError
from trainer.io.command_parser import CommandParser
from trainer.io.terminal import plain_console
from trainer.run.exit import guarded

if TYPE_CHECKING:
    from trainer.checkpoint.hf.conversion import Choice
    from trainer.checkpoint.hf.reader import Checkpoint

EXAMPLES = """\
examples:
  python launch/convert.py DeepSeek-V3 DeepSeek-V3-bf16 --dtype bfloat16
  python launch/convert.py runs/mine/weights mine-fp8 --dtype fp8 --without-mtp
  python launch/convert.py DeepSeek-V3 --check
  python launch/convert.py DeepSeek-V3 --print-config > mine.yaml

fp8 is for the matrices of attention and MLPs, in blocks of 128 x 128 with a float32 scale each, and
bfloat16 for the rest, as in the released checkpoints; the router bias is float32 in every type.
Tokenizer, generation config and licences are copied along; Python files are not. What the headers
of SOURCE say is checked before anything is written, values that are not finite are found on the
way, and TARGET gets its name only when it is whole. The exit code is 0; 1 for a checkpoint that is
wrong or cannot be written; 2 for a config.json that is not supported or wrong arguments; 130 for
Ctrl-C. docs/weights.md has more.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    if code := guarded("convert", lambda: _require_used(options)):
        return code
    # Imports torch, which wrong arguments need not wait for. Not within `guarded`: there Ctrl-C is
    # an exception, which an import can swallow; here it ends the process (_checkout.py).
    import trainer.checkpoint.hf.convert  # noqa: F401

    return guarded("convert", lambda: _run(options))


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
    add("--dtype", choices=types, help="type of the weights in TARGET (keep)")
    add("--without-mtp", action="store_true", help="leave out the modules of MTP")
    add("--overwrite", action="store_true", help="replace TARGET if it is a checkpoint")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _require_used(options: argparse.Namespace) -> None:
    """Raise ConfigError for an option that has no effect with the others."""
    if options.target is not None:
        return
    what = "--check" if options.check else "--print-config"
    unused = ["dtype", "without_mtp", "overwrite", *(["json"] if options.print_config else [])]
    for name in unused:
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect with {what}: leave it out")


def _run(options: argparse.Namespace) -> int:
    from trainer.checkpoint.hf.conversion import model_section
    from trainer.checkpoint.hf.reader import Checkpoint

    source = Checkpoint(options.source)
    if options.print_config:
        print(model_section(source), end="")
        return 0
    return _check(source, options.json) if options.check else _convert(source, options)


def _check(source: Checkpoint, as_json: bool) -> int:
    from trainer.checkpoint.hf.summary import summarise, table

    found = summarise(source)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        plain_console(width=None if sys.stdout.isatty() else 100).print(table(found))
        whole = "every tensor is as config.json says"
        print(f"wrong: {printable(found.problem)}" if found.problem else whole)
    return 1 if found.problem else 0


def _convert(source: Checkpoint, options: argparse.Namespace) -> int:
    from trainer.checkpoint.hf.conversion import plan_conversion
    from trainer.checkpoint.hf.convert import convert, require_place
    from trainer.io.byte_progress import byte_progress

    dtype: Choice = options.dtype or "keep"
    conversion = plan_conversion(source, dtype, options.without_mtp)
    require_place(conversion, options.target, options.overwrite)
    with byte_progress("converting") as progress:
        seconds = convert(conversion, options.target, progress)
    tensors, files = len(conversion.tensors), len(conversion.by_file())
    if options.json:
        done = {"target": str(options.target), "dtype": dtype, "files": files}
        done |= {"tensors": tensors, "bytes": conversion.nbytes, "seconds": seconds}
        print(json.dumps(done, indent=2))
    else:
        print(
            f"{printable(options.target)}: {tensors:,} tensors in {files} file{'s' * (files > 1)}, "
            f"{conversion.nbytes / 1e9:,.3f} GB in {seconds:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
