"""The packages beside this one (training, export, calibration), imported only where they are needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from adafocus_edge.errors import AdaFocusError, MissingExtraError


def import_companion(module: str, verb: str, extra: str) -> Any:
    """Import a module of another of our packages, and make sure that it is ours.

    The packages' names are general (``export``, ``training``), so a folder of that name where the user stands could
    come first. Raises ``AdaFocusError`` that names what shadows ours, or ``MissingExtraError``.
    """
    Path.cwd()  # raises where that was deleted, which PyTorch's libraries would end the process for
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
                f"{found} comes first on Python's path: run from another folder, or rename that"
                if found
                else "it is gone"
            )
        )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"`adafocus-edge {verb}`", extra, error.name or module) from None


def check_installed(package: str, verb: str, extra: str) -> None:
    """Check that a package can be found, without the seconds that importing it takes. Raises ``MissingExtraError``."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise MissingExtraError(f"`adafocus-edge {verb}`", extra, package)
