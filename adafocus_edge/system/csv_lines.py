"""CSV as every command writes it: fixed columns, comma-separated, quoted only where necessary (RFC 4180)."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def csv_line(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    """Return one row as a line, with its line break (carriage return and line feed).

    Args:
        columns: names of the columns, in order.
        row: values by column; a missing one is left empty, and one without a column is ignored.
    """
    text = io.StringIO()
    csv.DictWriter(text, columns, extrasaction="ignore").writerow(row)
    return text.getvalue()


def csv_header(columns: Sequence[str]) -> str:
    """Return the names of the columns as a line; see :func:`csv_line`."""
    return csv_line(columns, dict(zip(columns, columns, strict=True)))
