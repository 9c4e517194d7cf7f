"""Generate text with a checkpoint in the Hugging Face layout, such as RUN/weights of a run.

One process; the text goes to stdout as it comes, what it cost to stderr. --speculative lets the
checkpoint's MTP modules draft tokens that the model then verifies, several in one pass: the text is
the same as without, sooner.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout  # noqa: F401  first: it says where the imports below come from

import argparse
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import ConfigError, DataError, RunError
from trainer.io.command_parser import CommandParser

if TYPE_CHECKING:
    from trainer.generate.answer import Decoding
    from trainer.generate.text_model import TextModel

EXAMPLES = """\
examples:
  python launch/generate.py --checkpoint runs/single/weights --prompt "def main("
  python launch/generate.py --checkpoint DIR --prompt-file story.txt --max-new-tokens 500 \\
      --temperature 0.8 --top-p 0.95 --seed 7
  python launch/generate.py --checkpoint DIR --prompt "import " --speculative
  python launch/generate.py --checkpoint DIR --prompt "import " --compare --json

--json prints {checkpoint, prompt, text, tokens, prompt_tokens, new_tokens, ended, prompt_seconds,
seconds, tokens_per_second, tokens_per_forward, acceptance}, with --compare also greedy, the same
numbers of plain decoding, and speed_up. Rates are of the tokens behind the first; acceptance is the
share of the drafts of each MTP depth that held. The exit code is 0; 1 for a checkpoint that cannot
be used; 2 for wrong arguments; 130 for Ctrl-C, 141 where nobody reads on. docs/generation.md has
more.
"""
NEW_TOKENS = 200


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, after one line on what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        _run(options)
    except (RunError, DataError, ConfigError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("\ngenerate: stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the text has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("generate", __doc__, EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder with config.json")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", default="", metavar="TEXT", help="text to go on with (empty)")
    given.add_argument("--prompt-file", type=Path, metavar="FILE", help="a file with the prompt")
    usual = f"at most so many tokens ({NEW_TOKENS}, or what there is room for)"
    add("--max-new-tokens", type=int, metavar="N", help=usual)
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    add("--top-p", type=float, metavar="P", help="only the most likely tokens, of P together (1)")
    add("--seed", type=int, metavar="S", help="of the random choices (0)")
    add("--speculative", action="store_true", help="draft tokens with the MTP modules; greedy only")
    add("--compare", action="store_true", help="decode plainly too, compare tokens and rates")
    add("--dtype", choices=("float32", "float64"), default="float32", help="to compute in")
    add("--tokenizer", metavar="PATH", help="tokenizer.json, or a folder with it (that of DIR)")
    add("--json", action="store_true", help="print one JSON object, no text as it comes")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens must be 1 or more, got {options.max_new_tokens}")
    if not 0 <= options.temperature < float("inf"):
        raise ConfigError(f"--temperature must be 0 or more, got {options.temperature}")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ConfigError(f"--top-p must be more than 0 and at most 1, got {options.top_p}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ConfigError(f"--seed must be 0 or more and less than 2^63, got {options.seed}")
    if options.temperature == 0:
        for name in ("top_p", "seed"):
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} needs a --temperature above 0: greedy is not random")
    elif options.speculative or options.compare:
        which = "--speculative" if options.speculative else "--compare"
        raise ConfigError(
            f"{which} is greedy: leave out --temperature {options.temperature}, or {which}"
        )


def _run(options: argparse.Namespace) -> None:
    # Only here: this imports torch, which wrong arguments need not wait for.
    import torch

    from trainer.generate.answer import answer
    from trainer.generate.choose import Sampler, most_likely
    from trainer.generate.decode import decode
    from trainer.generate.report import as_json, in_words, require_same, text_behind
    from trainer.generate.speculate import speculate
    from trainer.generate.text_model import load_text_model
    from trainer.io.byte_progress import byte_progress

    text = _prompt(options)
    drafts = options.speculative or options.compare
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    with byte_progress("reading weights") as loading:
        text_model = load_text_model(options.checkpoint, options.tokenizer, dtype, drafts, loading)
    prompt = text_model.prompt_tokens(text)
    new_tokens = text_model.room(len(prompt), options.max_new_tokens, NEW_TOKENS)
    plain = None
    if options.compare:
        waiting = _Waiting("plain decoding", new_tokens)
        greedy = partial(decode, choose=most_likely)
        plain = answer(text_model, prompt, new_tokens, greedy, waiting.push)
        waiting.end()
    decoding: Decoding = speculate
    if not drafts:
        generator = torch.Generator().manual_seed(options.seed or 0)
        top_p = 1.0 if options.top_p is None else options.top_p
        sampler = Sampler(options.temperature, top_p, generator)
        decoding = partial(decode, choose=sampler if options.temperature else most_likely)
    shown = _Waiting("decoding", new_tokens) if options.json else _Stream(text_model, prompt)
    made = answer(text_model, prompt, new_tokens, decoding, shown.push)
    shown.end()
    if plain is not None:
        require_same(made, plain)
    if options.json:
        asked = {"checkpoint": str(options.checkpoint), "prompt": text.decode(errors="replace")}
        asked["text"] = text_behind(text_model.tokenizer, prompt, made.tokens)
        print(json.dumps(asked | as_json(made, plain)))
    else:
        print(in_words(made, plain), file=sys.stderr)


def _prompt(options: argparse.Namespace) -> bytes:
    if options.prompt_file is None:
        return os.fsencode(options.prompt)  # the bytes that the shell gave
    try:
        return options.prompt_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--prompt-file {options.prompt_file}: {error.strerror}") from error


class _Stream:
    """The text on stdout, as it comes."""

    def __init__(self, text_model: TextModel, prompt: list[int]) -> None:
        from trainer.data.text_stream import TextStream

        self._stream = TextStream(text_model.tokenizer)
        for token in prompt:
            self._stream.push(token)

    def push(self, token: int) -> None:
        print(self._stream.push(token), end="", flush=True)

    def end(self) -> None:
        print(self._stream.end(), flush=True)


class _Waiting:
    """A line on how far it is, on a terminal, while no text is seen."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._done, self._total = what, 0, total
        self._begin = self._said = time.monotonic()

    def push(self, token: int) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said > 0.2:
            self._said, rate = now, self._done / (now - self._begin)
            left = (self._total - self._done) / rate
            count = f"{self._done:,} of {self._total:,} tokens"
            self._line(f"{self._what}: {count}, {rate:,.1f}/s, {left:,.0f} s left")

    def end(self) -> None:
        self._line("")

    def _line(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{' ' * 79}\r{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
