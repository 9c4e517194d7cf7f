"""Generate text with a checkpoint in the Hugging Face layout, such as RUN/weights of a run.

One process; prompt and text go to stdout as they come, what they cost to stderr. The model is
loaded once for all prompts, which are decoded together, and shown in their order; a text does not
depend on the others. --speculative takes one prompt after the other, and lets the checkpoint's MTP
modules draft tokens that the model then verifies, several in one pass: the text is the same as
without, sooner.

Prompt and new text must fit into max_position_embeddings of config.json. A run sets it to its
data.sequence_length, so the weights of a short run make short texts.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import sys
from pathlib import Path

from trainer.errors import ConfigError
from trainer.io.command_parser import CommandParser
from trainer.run.exit import guarded
from trainer.run.local_ranks import limit_threads

EXAMPLES = """\
examples:
  python launch/generate.py --checkpoint runs/single/weights --prompt "def main("
  python launch/generate.py --checkpoint DIR --prompt "import " --prompt "class " --json
  python launch/generate.py --checkpoint DIR --prompts asked.jsonl --prompt-field question
  python launch/generate.py --checkpoint DIR --prompt-file story.txt --max-new-tokens 500 \\
      --temperature 0.8 --top-p 0.95 --seed 7
  python launch/generate.py --checkpoint DIR --prompt "import " --speculative
  python launch/generate.py --checkpoint DIR --prompt "import " --compare --json

--json prints one object per prompt, each on its line: {checkpoint, prompt, text, tokens,
prompt_tokens, new_tokens, ended, limit, prompt_seconds, seconds, tokens_per_second,
tokens_per_forward, acceptance}, with --compare also greedy, the same numbers of plain decoding, and
speed_up. Rates do not count the first token; acceptance is the share of the drafts of each MTP
depth that held. The exit code is 0; 1 for a checkpoint that cannot be used; 2 for wrong arguments;
130 for Ctrl-C, 141 where nobody reads the output. docs/generation.md has more.
"""
NEW_TOKENS = 200


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    if code := guarded("generate", lambda: _check(options)):
        return code
    limit_threads()
    # Imports torch, which wrong arguments need not wait for. Not within `guarded`: there Ctrl-C is
    # an exception, which an import can swallow; here it ends the process (_checkout.py).
    import trainer.generate.session  # noqa: F401

    return guarded("generate", lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("generate", __doc__, EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder with config.json")
    given = parser.add_mutually_exclusive_group()
    repeated = "text to continue (empty); repeat it for more prompts"
    given.add_argument("--prompt", action="append", metavar="TEXT", help=repeated)
    given.add_argument("--prompt-file", type=Path, metavar="FILE", help="a file with one prompt")
    lines = "a file with a prompt on each line; JSON lines if it is named .jsonl"
    given.add_argument("--prompts", type=Path, metavar="FILE", help=lines)
    add("--prompt-field", metavar="NAME", help="field of a JSON line with the prompt (prompt)")
    usual = f"at most N new tokens per prompt ({NEW_TOKENS}, or what there is room for)"
    add("--max-new-tokens", type=int, metavar="N", help=usual)
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    add("--top-p", type=float, metavar="P", help="only the most likely tokens, of P together (1)")
    add("--seed", type=int, metavar="S", help="seed of the first prompt's random choices (0)")
    add("--speculative", action="store_true", help="draft tokens with the MTP modules; greedy only")
    add("--compare", action="store_true", help="--speculative and plain: compare tokens and rates")
    add("--batch-size", type=int, metavar="N", help="at most N texts at once (what memory allows)")
    types = ("float32", "float64", "bfloat16")
    add("--dtype", choices=types, default="float32", help="type of weights and products (float32)")
    add("--tokenizer", metavar="PATH", help="tokenizer.json, or a folder with it (that of DIR)")
    add("--no-echo", action="store_true", help="print the new text without its prompt")
    add("--json", action="store_true", help="print one JSON object per prompt, no text as it comes")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens must be 1 or more, got {options.max_new_tokens}")
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"--batch-size must be 1 or more, got {options.batch_size}")
    if not 0 <= options.temperature < float("inf"):
        raise ConfigError(f"--temperature must be 0 or more, got {options.temperature}")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ConfigError(f"--top-p must be more than 0 and at most 1, got {options.top_p}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed must be 0 or more and less than 2^63, got {options.seed}")
    if options.prompt_field is not None and options.prompts is None:
        raise ConfigError("--prompt-field needs --prompts FILE.jsonl")
    if options.json and options.no_echo:
        raise ConfigError("--no-echo is for text: leave it out, or --json")
    if options.compare and options.speculative:
        raise ConfigError("--compare decodes with and without drafts: leave out --speculative")
    if options.temperature == 0:
        for name in ("top_p", "seed"):
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} needs a --temperature above 0: greedy is not random")
    drafts = "--speculative" if options.speculative else "--compare" if options.compare else ""
    if drafts and options.batch_size is not None:
        raise ConfigError(
            f"{drafts} makes drafts for one text at a time: leave out --batch-size "
            f"{options.batch_size}, or {drafts}"
        )
    if drafts and options.dtype == "bfloat16":
        raise ConfigError(
            f"{drafts} needs choices that rounding does not change, which bfloat16 has too few "
            f"digits for: leave out --dtype bfloat16, or {drafts}"
        )
    if drafts and options.temperature:
        raise ConfigError(
            f"{drafts} is greedy: leave out --temperature {options.temperature}, or {drafts}"
        )


def _run(options: argparse.Namespace) -> None:
    from parallel.ops.precision import PRECISIONS
    from trainer.generate.output import JsonOutput, Output, TextOutput
    from trainer.generate.prompts import read_prompts
    from trainer.generate.question import questions
    from trainer.generate.session import Method, answer_all
    from trainer.generate.text_model import load_text_model
    from trainer.io.byte_progress import byte_progress

    prompts = read_prompts(
        options.prompt, options.prompt_file, options.prompts, options.prompt_field
    )
    method = Method(
        temperature=options.temperature,
        top_p=1.0 if options.top_p is None else options.top_p,
        seed=options.seed or 0,
        speculative=options.speculative or options.compare,
        compare=options.compare,
        batch=options.batch_size,
    )
    dtype = PRECISIONS[options.dtype].parameters
    with byte_progress("reading weights") as loading:
        text_model = load_text_model(
            options.checkpoint, options.tokenizer, dtype, method.speculative, loading
        )
    asked = questions(text_model, prompts, options.max_new_tokens, NEW_TOKENS)
    output: Output = TextOutput(text_model, not options.no_echo, len(asked))
    if options.json:
        output = JsonOutput(text_model, options.checkpoint)
    answer_all(text_model, asked, method, output)


if __name__ == "__main__":
    sys.exit(main())
