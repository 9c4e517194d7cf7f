"""Parquet: each row has a text in one of its columns. pyarrow, an extra, reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parallel.files.regular import require_regular
from trainer.data.bad import Bad
from trainer.errors import DataError

_ROWS = 256  # at once


def iter_parquet(file: Path, column: str, bad: Bad) -> Iterator[tuple[int, bytes]]:
    """(row, counted from 1, and its text as UTF-8). `bad` is told, with file and row, of a row that
    holds none, and of where a file cannot be read on. Raises DataError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file}: parquet is read by pyarrow: pip install pyarrow") from error
    require_regular(file, DataError)
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            _require_column(file, column, parquet.schema_arrow, pyarrow)
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        bad(DataError(f"{file}, row {row}: nothing in column {column!r}"))
                    else:
                        yield row, text.encode()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        bad(DataError(f"{file}: after row {row}: cannot be read ({why})"))


def _require_column(file: Path, column: str, schema: Any, pyarrow: Any) -> None:
    if column not in schema.names:
        raise DataError(
            f"{file}: no column {column!r}; set data.text_field to the column with the text "
            f"(columns: {', '.join(map(repr, schema.names[:10])) or 'none'})"
        )
    kind = schema.field(column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(
            f"{file}: column {column!r} holds {kind}, not strings; set data.text_field to the "
            "column with the text"
        )
