"""JSON objects as single lines that no terminal or editor obeys."""

from __future__ import annotations

import json
import re
from typing import Any

OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that JSON allows and terminals or editors obey: control codes, line breaks, changes of direction."""


def to_line(entry: dict[str, Any]) -> str:
    """Return an object as one line of JSON, without a line break at its end."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(entry, ensure_ascii=False))
