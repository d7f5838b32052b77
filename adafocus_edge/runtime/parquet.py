"""Results as Apache Parquet: the JSON objects of ``classify``, one row each; needs the extra ``[parquet]``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".parquet"
ROWS_PER_GROUP = 4096
"""Rows that are in memory at a time."""


def is_parquet(path: Path) -> bool:
    """Whether a path names a Parquet file."""
    return path.suffix.lower() == SUFFIX


def check_parquet() -> None:
    """Raise ``MissingExtraError`` if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"writing a {SUFFIX} file", "parquet", error.name or "pyarrow") from None


def result_schema() -> Any:
    """Return the columns: those of :class:`~adafocus_edge.runtime.reports.ResultReport`, and ``error``.

    A source that failed is a row of its name and its ``error``, all else null.
    """
    import pyarrow as pa

    best = [("label", pa.string()), ("class_id", pa.int32()), ("confidence", pa.float64())]
    step = [
        ("step", pa.int32()), ("frame_index", pa.int64()), ("time_s", pa.float64()), ("patch", pa.list_(pa.float64())),
        *best, ("logits", pa.list_(pa.float32())),
    ]  # fmt: skip
    return pa.schema(
        [
            ("source", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()), *best,
            ("top", pa.list_(pa.struct(best))), ("steps", pa.list_(pa.struct(step))), ("steps_used", pa.int32()),
            ("exited_early", pa.bool_()), ("latency_ms", pa.float64()), ("model_ms", pa.float64()),
            ("backend", pa.string()), ("variant", pa.string()), ("error", pa.string()),
        ]
    )  # fmt: skip


def write_parquet(lines: Path, target: Path) -> None:
    """Write a file of JSON lines, one result or failed source each, as Parquet. Raises ``OSError``."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = result_schema()
    # A file of Python's own: its errors say what is wrong and nothing else.
    with target.open("wb") as file, ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in _groups(lines):
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _groups(lines: Path) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    with lines.open(encoding="utf-8") as file:
        for line in file:
            rows.append(_plain(json.loads(line)))
            if len(rows) == ROWS_PER_GROUP:
                yield rows
                rows = []
    if rows:
        yield rows


def _plain(value: Any) -> Any:
    """Return a JSON value with text that UTF-8 can encode: names of files may hold other bytes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
