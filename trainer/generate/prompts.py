"""The prompts of a command, from its arguments or from files; no torch in here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from parallel.files.regular import read_regular
from trainer.data.bad import stop
from trainer.data.files import COMPRESSED, read_lines
from trainer.data.json_lines import iter_json_lines
from trainer.errors import ConfigError, DataError

FIELD = "prompt"
_MOST_BYTES = 1 << 26


def read_prompts(
    given: Sequence[str] | None, file: Path | None, lines: Path | None, field: str | None
) -> list[bytes]:
    """The prompts, as UTF-8 if they are text; one empty prompt where nothing is given.

    given: arguments. file: with one prompt. lines: a file, perhaps compressed, with a prompt on
    each line that is not blank; in a file named .jsonl a line is an object with its prompt in
    `field`, "prompt" where that is None. Raises ConfigError, with file and line.
    """
    try:
        if file is not None:
            return [read_regular(file, _MOST_BYTES, DataError)]
        if lines is not None:
            return _prompts_in(lines, field)
    except DataError as error:
        option = "--prompt-file" if file is not None else "--prompts"
        raise ConfigError(f"{option} {error}") from error
    return [os.fsencode(prompt) for prompt in given or [""]]  # the bytes that the shell gave


def _prompts_in(file: Path, field: str | None) -> list[bytes]:
    is_json = ".jsonl" in file.suffixes[-1 - (file.suffix in COMPRESSED) :]
    if is_json:
        lines = iter_json_lines(file, field or FIELD, "--prompt-field", stop)
        found = [text for _, text in lines]
    elif field is not None:
        raise ConfigError(f"--prompt-field {field} is for JSON lines: {file} is not named .jsonl")
    else:
        found = [line.removesuffix(b"\r") for line in read_lines(file) if line.strip()]
    if not found:
        raise DataError(f"{file}: has no prompt: write one on each line")
    return found
