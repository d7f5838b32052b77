"""The Python reference: whatever the examples on a page import, with signature and docstring."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

from scripts.manual.docstrings import attributes, plain, sections

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^from (adafocus_edge[\w.]*) import (.+)$", re.MULTILINE)


def reference(page: str) -> str:
    """Return a chapter for each name that the Python blocks of ``page`` import from the package, by name."""
    found = {}
    for block in BLOCK.findall(page):
        for module, names in IMPORT.findall(block):
            for name in re.findall(r"\w+", names):
                found[name] = (module, getattr(importlib.import_module(module), name))
    return "\n\n".join(_chapter(name, *found[name]) for name in sorted(found, key=str.lower))


def _chapter(name: str, module: str, documented: Any) -> str:
    parts = [f"### {name}", f"```python\nfrom {module} import {name}\n\n{_signature(name, documented)}\n```"]
    parts.append(_text(documented))
    if inspect.isclass(documented):
        for method, function in _methods(documented):
            called = method if isinstance(vars(documented)[method], property) else _signature(method, function)
            parts += [f"**`{name}.{called}`**", _text(function)]
    return "\n\n".join(part for part in parts if part)


def _methods(documented: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that the class itself defines and describes."""
    methods = []
    for name, member in vars(documented).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.getdoc(function) and callable(getattr(documented, name)):
            methods.append((name, function))
        elif not name.startswith("_") and isinstance(member, property) and member.fget:
            methods.append((name, member.fget))
    return methods


def _signature(name: str, documented: Any) -> str:
    try:
        signature = inspect.signature(documented)
    except (TypeError, ValueError):
        return name
    kept = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    if inspect.isclass(documented):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    return f"{name}{signature.replace(parameters=kept)}".replace("'", "")


def _text(documented: Any) -> str:
    parts = sections(documented)
    text = [plain(parts[""])] if not _made_by_dataclass(documented) else []
    for section in ("Attributes", "Args"):
        if entries := attributes(documented, section):
            text.append("\n".join(f"- `{name}`: {plain(line)}" for name, line in entries.items()))
    for section in ("Returns", "Yields"):
        if section in parts:
            text.append(f"{section}: {plain(' '.join(parts[section].split()))}")
    if errors := attributes(documented, "Raises"):
        text.append("Raises:\n\n" + "\n".join(f"- `{name}`: {plain(line)}" for name, line in errors.items()))
    if "Example" in parts:
        text.append(f"```python\n{parts['Example']}\n```")
    return "\n\n".join(text)


def _made_by_dataclass(documented: Any) -> bool:
    """Return whether a class has no docstring but the signature that ``dataclass`` writes."""
    made = f"{getattr(documented, '__name__', '')}("
    return dataclasses.is_dataclass(documented) and (inspect.getdoc(documented) or "").startswith(made)
