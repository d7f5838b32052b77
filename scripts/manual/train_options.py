"""The reference of `train`'s options, from the dataclass that Hydra composes and its presets."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import yaml  # type: ignore[import-untyped]

from scripts.manual.docstrings import attributes, plain
from scripts.manual.tables import table
from training.options import CHOICES, CONF, PRESETS, UNUSED, TrainOptions

FIRST_OF_OURS = "preset"
"""The options from this one on are not the official code's."""
GROUPS = {"dataset": "`actnet`, `fcvid`, `minik`, `custom`", "preset": ", ".join(f"`{one}`" for one in PRESETS)}


def reference() -> str:
    """Return the tables of the official options, of ours, of those without effect, and of the presets."""
    known = fields(TrainOptions)
    ours_at = [one.name for one in known].index(FIRST_OF_OURS)
    official = [one for one in known[:ours_at] if one.name not in UNUSED]
    return "\n\n".join(
        [
            "## Official options\n\nNames and defaults are the official code's.",
            _table(official),
            "## Options of AdaFocus Edge",
            _table(list(known[ours_at:])),
            "## Options without effect\n\nThe official code reads these and never uses them, or the stage or the data "
            "decide them. `train` accepts them and logs a note.",
            ", ".join(f"`{one}`" for one in sorted(UNUSED)),
            "## Presets\n\nA preset changes these defaults; an option on the command line overrides it.",
            _presets(),
        ]
    )


def _table(options: list[Field[Any]]) -> str:
    described = attributes(TrainOptions)
    rows = []
    for one in options:
        choices = GROUPS.get(one.name) or ", ".join(f"`{value}`" for value in CHOICES.get(one.name, ()))
        default = "empty" if one.default in ("", None) else f"`{_written(one.default)}`"
        text = plain(described.get(one.name, ""))
        rows.append((f"`{one.name}`", default, choices, text[:1].upper() + text[1:]))
    return table(("option", "default", "choices", "description"), rows)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _presets() -> str:
    settings: dict[str, dict[str, Any]] = {}
    for name in PRESETS:
        text = (CONF / "preset" / f"{name}.yaml").read_text("utf-8")
        settings[name] = {key: value for key, value in (yaml.safe_load(text) or {}).items() if key != "defaults"}
    defaults = {one.name: one.default for one in fields(TrainOptions)}
    keys = sorted({key for one in settings.values() for key in one} - {"preset"})
    rows = [
        (f"`{key}`", *(f"`{_written(settings[name].get(key, defaults.get(key)))}`" for name in PRESETS)) for key in keys
    ]
    return table(("option", *(f"`preset={name}`" for name in PRESETS)), rows)
