"""Evaluate a checkpoint: bits per byte and perplexity on texts of yours, and tasks of lm-eval.

DIR has config.json and safetensors in the Hugging Face layout, such as RUN/weights; the folder of a
run stands for its weights.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import ConfigError
from trainer.io.command_parser import CommandParser
from trainer.io.option_types import whole_number
from trainer.io.terminal import plain_console
from trainer.run.exit import guarded

if TYPE_CHECKING:
    from rich.table import Table

    from trainer.evaluate.measure import Score

EXAMPLES = """\
examples:
  python launch/evaluate.py --checkpoint runs/single --set docs=docs --set python=shards/python
  python launch/evaluate.py --checkpoint runs/single --set docs --sequences 64 --json
  python launch/evaluate.py --checkpoint runs/single --prompt "def main(" --new-tokens 60
  python launch/evaluate.py --checkpoint runs/single --tasks configs/tasks

Of text that launch/prepare.py has made, what is held out is read; of a file, a folder or JSON lines
everything. The numbers are those that a run's own evaluation gives, and transformers' on the same
windows. Tasks are files of lm-eval (pip install lm-eval) and run offline. docs/evaluation.md has
more.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    return guarded("evaluate", lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("evaluate", __doc__, EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="of weights, or of a run")
    add(
        "--set", action="append", default=[], metavar="NAME=PATH", help="a text; repeat it for more"
    )
    add("--sequence-length", type=whole_number(1, 10**7), metavar="S",
        help="tokens of a window (what the checkpoint was trained with)")  # fmt: skip
    add("--sequences", type=whole_number(1), metavar="N", help="windows of each set, at most (all)")
    add("--prompt", action="append", default=[], metavar="TEXT", help="go on from it, greedily")
    add("--new-tokens", type=whole_number(1, 10**6), default=80, metavar="N",
        help="tokens after a prompt (80)")  # fmt: skip
    add("--tasks", type=Path, metavar="PATH", help="a task file of lm-eval, or a folder of them")
    add("--limit", type=whole_number(1), metavar="N", help="examples of each task (all)")
    add("--dtype", choices=("float32", "float64", "bfloat16"), default="float32",
        help="type of weights and products (float32)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of tables")
    return parser


def _run(options: argparse.Namespace) -> None:
    if not (options.set or options.prompt or options.tasks):
        raise ConfigError("there is nothing to do: give --set, --prompt or --tasks")
    from trainer.evaluate.measure import checkpoint_folder
    from trainer.evaluate.samples import samples

    folder = checkpoint_folder(options.checkpoint)
    scores = _scores(folder, options) if options.set else []
    texts = samples(folder, options.prompt, options.new_tokens, options.dtype)
    tasks = _tasks(folder, options) if options.tasks else {}
    if options.json:
        said = {
            "checkpoint": str(folder),
            "sets": [score.as_json() for score in scores],
            "samples": [{"prompt": p, "text": t} for p, t in zip(options.prompt, texts)],
            "tasks": tasks,
        }
        print(json.dumps(said, indent=2))
        return
    console = plain_console(width=None if sys.stdout.isatty() else 100)
    if scores:
        console.print(_table(scores))
    for prompt, text in zip(options.prompt, texts):
        console.print(f"{prompt}{text}", markup=False)
    if tasks:
        console.print(_task_table(tasks))


def _scores(folder: Path, options: argparse.Namespace) -> list[Score]:
    from trainer.checkpoint.hf.reader import Checkpoint
    from trainer.evaluate.measure import evaluator, model_of, score
    from trainer.evaluate.named_sets import open_set, read_name
    from trainer.generate.text_model import tokenizer_of
    from trainer.io.count_progress import count_progress

    model = model_of(folder)
    length = options.sequence_length or Checkpoint(folder).config.get("max_position_embeddings")
    if not length:
        raise ConfigError("config.json does not say how long sequences are: give --sequence-length")
    tokenizer = tokenizer_of(folder, None, model)
    named = [read_name(text) for text in options.set]
    sets = [
        open_set(name, path, tokenizer, length, model.mtp.depth, options.sequences)
        for name, path in named
    ]
    found = []
    trainer = evaluator(folder, model, length, options.dtype, "auto")
    with count_progress("sets") as show:
        for number, each in enumerate(sets, 1):
            found.append(score(trainer, each))
            show(number, len(sets))
    return found


def _table(scores: list[Score]) -> Table:
    from rich.table import Table

    table = Table()
    for column in ("set", "nats per token", "perplexity", "bits per byte", "tokens", "MB"):
        table.add_column(column, justify="left" if column == "set" else "right")
    depths = max(len(score.mtp) for score in scores)
    for depth in range(depths):
        table.add_column(f"MTP {depth + 1}, nats", justify="right")
    for score in scores:
        bits = "-" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"
        table.add_row(
            score.name, f"{score.loss:.4f}", f"{score.perplexity:,.2f}", bits,
            f"{score.tokens:,}", f"{score.bytes / 1e6:,.3f}", *(f"{v:.4f}" for v in score.mtp),
        )  # fmt: skip
    return table


def _tasks(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    from trainer.evaluate.tasks import run_tasks

    return run_tasks(folder, options.tasks, options.dtype, options.limit)


def _task_table(tasks: dict[str, dict[str, float]]) -> Table:
    from rich.table import Table

    table = Table("task", "measure", "value")
    for task, values in tasks.items():
        for name, value in values.items():
            table.add_row(task, name, f"{value:.4f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
