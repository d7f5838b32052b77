"""The packages beside this one (training, export, calibration), imported only when a command needs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from adafocus_edge.errors import AdaFocusError, MissingExtraError


def import_companion(module: str, verb: str, extra: str) -> Any:
    """Import and return a module of another AdaFocus Edge package.

    The packages have general names (``export``, ``training``), so a folder of the same name in the user's working
    folder could shadow them.

    Args:
        module: full name of the module.
        verb: the command that needs it.
        extra: the extra that installs what the module imports.

    Raises:
        AdaFocusError: another package shadows ours, or ours is missing.
        MissingExtraError: a package that the module imports is not installed.
    """
    Path.cwd()  # raises if the working folder was deleted; PyTorch's libraries would end the process instead
    package = module.partition(".")[0]
    ours = Path(__file__).resolve().parents[2] / package
    spec = importlib.util.find_spec(package)
    where = spec and (spec.origin or next(iter(spec.submodule_search_locations or []), None))
    found = None
    if where:
        found = Path(where).resolve()
        found = found.parent if found.name == "__init__.py" else found
    if found != ours:
        raise AdaFocusError(
            f"`adafocus-edge {verb}` needs the package {package!r} in {ours.parent}, but "
            + (
                f"{found} comes first on Python's path: run from another folder, or rename it"
                if found
                else "it is missing: install adafocus-edge again"
            )
        )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"`adafocus-edge {verb}`", extra, error.name or module) from None


def check_installed(package: str, verb: str, extra: str) -> None:
    """Raise ``MissingExtraError`` if a package is not installed; importing it to find out would take seconds."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise MissingExtraError(f"`adafocus-edge {verb}`", extra, package)
