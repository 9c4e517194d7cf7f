"""JSON lines: each line is an object with a text in one of its fields."""

import json
from collections.abc import Iterator
from pathlib import Path

from trainer.data.bad import Bad
from trainer.data.files import read_lines
from trainer.errors import DataError

_FIELDS_SHOWN = 10


def iter_json_lines(file: Path, field: str, setting: str, bad: Bad) -> Iterator[tuple[int, bytes]]:
    """(line, the text in `field` as UTF-8) of each line that is not blank; a text may be empty.

    The file may be compressed. `bad` is told, with file and line, of a line that is not such an
    object, and of where a file cannot be read on; `setting` is the key or option to name another
    field by.
    """
    lines = enumerate(read_lines(file), start=1)
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except DataError as problem:  # nothing is known of what comes after
            bad(problem)
            return
        if line.strip():
            try:
                text = _text(line, f"{file}, line {number}", field, setting)
            except DataError as problem:
                bad(problem)
                continue
            yield number, text


def _text(line: bytes, place: str, field: str, setting: str) -> bytes:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: JSON that cannot be read ({error})") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{place}: a JSON {type(record).__name__}, where an object with the field "
            f"{field!r} is needed ({setting})"
        )
    if field not in record:
        some = [repr(name)[:40] for name in list(record)[:_FIELDS_SHOWN]]
        others = ", ".join(some) + ", ..." * (len(record) > len(some)) or "none"
        raise DataError(
            f"{place}: no field {field!r}; set {setting} to the field with the text "
            f"(fields of the line: {others})"
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(
            f"{place}: field {field!r} holds {type(text).__name__}, not a string; "
            f"set {setting} to the field with the text"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: field {field!r} has half of a surrogate pair (character {error.start})"
        ) from error
