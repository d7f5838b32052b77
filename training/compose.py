"""Composes the options of training as Hydra's users know it: defaults, config groups, own config files, sweeps."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adafocus_edge.errors import UsageError
from training.layouts import LAYOUTS
from training.options import (
    CONF,
    DATASETS,
    EMPTY_MEANS_DEFAULT,
    FAMILIES,
    PRESETS,
    UNUSED,
    TrainOptions,
    check_options,
    settle_family,
)

STAGE_RUNS = ("glancer", "focuser", "stage1", "stage2", "stage3")
"""The runs of ``stages=all`` in their order, which are the names of their folders, too."""
STAGE_PREFIX = re.compile(rf"(stage0|{'|'.join(STAGE_RUNS)})\.(?=\w+=)")
"""What makes an option one of a single stage in ``stages=all``: ``stage2.epochs=50``; ``stage0.`` is both backbones."""
STAGE_DEFAULTS = "stage_defaults"
"""Folder of files ``PRESET.yaml`` with a preset's defaults for each stage of ``stages=all``."""


@dataclass
class Composed:
    """A composed configuration.

    Attributes:
        options: checked.
        run_dir: Hydra's output folder, ``outputs/YYYY-MM-DD/HH-MM-SS`` unless ``hydra.run.dir`` names another.
        chose_run_dir: whether it was given.
        notes: notes for the user: options that are accepted and have no effect.
        given: the options that were given, as they were written, without those of single stages.
        of_stages: the options of single stages, without their prefix, by run of ``stages=all``.
        config_dir: folder of the user's own config files.
    """

    options: TrainOptions
    run_dir: Path
    chose_run_dir: bool
    notes: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    of_stages: dict[str, list[str]] = field(default_factory=dict)
    config_dir: Path | None = None


def compose_options(overrides: Sequence[str], config_dir: Path | None = None) -> Composed:
    """Compose the configuration from defaults, the config groups ``dataset`` and ``preset``, and ``key=value``.

    Args:
        overrides: ``key=value``, ``++key=value``, and with a ``config_dir`` ``+group=file``.
        config_dir: folder of the user's own config files: ``preset/NAME.yaml``, ``GROUP/NAME.yaml``.

    Raises ``UsageError``: not ``key=value``, an unknown key (the nearest known one is named), a value of the wrong type
    or outside its choices, or options that contradict each other.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir {config_dir}: no such folder")
    common, of_stages = _split(overrides)
    known = {f.name: f for f in fields(TrainOptions)}
    given = [_normalise(override, known, config_dir) for override in common]
    given = [text for text in given if text.rstrip("=") not in EMPTY_MEANS_DEFAULT]
    keys = [text.partition("=")[0].lstrip("+") for text in given]
    _check_groups(dict(zip(keys, (text.partition("=")[2] for text in given), strict=True)), config_dir)
    options, run_dir = _compose(given, config_dir, known)
    family_notes = settle_family(options, keys)
    check_options(options)
    if of_stages and options.stages != "all":
        raise UsageError(f"{next(iter(of_stages))}.KEY=VALUE: options of a single stage are for stages=all")
    notes = [*family_notes, *(f"{key}=: accepted, without effect" for key in keys if key in UNUSED)]
    chose = "hydra.run.dir" in keys
    return Composed(options, run_dir, chose, notes, common, of_stages, config_dir)


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return the options of each run of a sweep: ``key=a,b`` stands for one run with each value, as in Hydra.

    Every combination is one run, in its own folder: ``hydra.sweep.dir`` (``multirun/DATE/TIME`` by default), numbered.
    Raises ``UsageError``.
    """
    known = {f.name: f for f in fields(TrainOptions)}
    parser = OverridesParser.create()
    plain: list[str] = []
    for override in overrides:
        prefix = STAGE_PREFIX.match(override)
        head = prefix[0] if prefix else ""
        plain.append(head + _normalise(override.removeprefix(head), known, None, sweeps=True))
    if any(text.startswith("hydra.run.dir=") for text in plain):
        raise UsageError("hydra.run.dir=: is for one run; with --multirun give hydra.sweep.dir=")
    swept = [text for text in plain if text.startswith("hydra.sweep.dir=")]
    rest = [text for text in plain if text not in swept]
    runs = itertools.product(*(_values(parser.parse_override(text)) for text in rest))
    folder = _sweep_dir(swept)
    return [[*run, f"hydra.run.dir={folder / str(number)}"] for number, run in enumerate(runs)]


def _values(override: Override) -> list[str]:
    """Return ``key=value`` for each value of an override. Raises ``UsageError`` for a range without steps."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UsageError(f"{override.input_line}: needs a sweeper plug-in: give values, such as 1,2,3 or range(1,4)")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def as_yaml(options: TrainOptions) -> str:
    """Return options as YAML; what ``config.yaml`` in a run's folder holds, and ``--cfg job`` prints."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(options)))


def stage_defaults(preset: str, config_dir: Path | None) -> dict[str, list[str]]:
    """Return a preset's defaults, ``key=value``, for each run of ``stages=all``. Raises ``UsageError``."""
    for folder in filter(None, (config_dir, CONF)):
        path = folder / STAGE_DEFAULTS / f"{preset}.yaml"
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text("utf-8")) or {}
                return {name: overrides_of(values) for name, values in content.items()}
            except (yaml.YAMLError, UnicodeError, AttributeError) as error:
                raise UsageError(
                    f"{path}: not a table of options by stage ({' '.join(str(error).split())[:200]})"
                ) from None
    return {}


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Return options as ``key=value``, as a command line has them."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def by_key(*parts: Sequence[str]) -> list[str]:
    """Join lists of ``key=value``; where a key stands in several, the last one counts."""
    return list({text.partition("=")[0].lstrip("+"): text for part in parts for text in part}.values())


def _split(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Divide options into common ones and those of each run of ``stages=all``."""
    common: list[str] = []
    of_stages: dict[str, list[str]] = {}
    for text in overrides:
        found = STAGE_PREFIX.match(text)
        if found is None:
            common.append(text)
            continue
        for name in ("glancer", "focuser") if found[1] == "stage0" else (found[1],):
            of_stages.setdefault(name, []).append(text.removeprefix(found[0]))
    return common, of_stages


def _compose(given: list[str], config_dir: Path | None, known: dict[str, Any]) -> tuple[TrainOptions, Path]:
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainOptions)
    for name, layout in LAYOUTS.items():
        store.store(group="dataset", name=name, node={"dataset": name, **asdict(layout)}, package="_global_")
    if config_dir is not None:
        given = [*given, f"hydra.searchpath=[{quoted(f'file://{config_dir.resolve()}')}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=given, return_hydra_config=True)
            run_dir = Path(str(config.hydra.run.dir))
            values = {name: config[name] for name in known}
            values["preset"] = config.hydra.runtime.choices["preset"]  # the user's own file need not repeat its name
            chosen = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainOptions), values))
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"options: {' '.join(str(error.__cause__ or error).split())[:300]}") from None
    assert isinstance(chosen, TrainOptions)
    return chosen, run_dir


def _sweep_dir(given: list[str]) -> Path:
    """Return the folder of a sweep's runs."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("sweep", overrides=given, return_hydra_config=True)
        return Path(str(config.hydra.sweep.dir))


def _check_groups(chosen: dict[str, str], config_dir: Path | None) -> None:
    """Check the choices of config groups. Raises ``UsageError`` that lists them."""
    for group, shipped in (("family", FAMILIES), ("dataset", DATASETS), ("preset", PRESETS)):
        own = tuple(sorted(path.stem for path in (config_dir / group).glob("*.yaml"))) if config_dir else ()
        allowed = tuple(dict.fromkeys((*shipped, *own)))
        if group in chosen and chosen[group] not in allowed:
            raise UsageError(f"{group}={chosen[group]}: must be one of {', '.join(allowed)}")
    if "dataset" not in chosen:
        raise UsageError(f"dataset= is missing: give one of {', '.join(DATASETS)}")


def _normalise(override: str, known: dict[str, Any], config_dir: Path | None, *, sweeps: bool = False) -> str:
    """Check a ``key=value``, and quote a value that Hydra's grammar does not take (spaces, ...).

    Args:
        override: as it was written.
        known: fields of the options.
        config_dir: folder of the user's own config groups, which ``+group=file`` adds.
        sweeps: whether a value may be several, ``a,b``.
    """
    if override.startswith("~"):
        raise UsageError(f"{override}: an option cannot be removed: give KEY=VALUE with another value")
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"{override!r}: options of train are written key=value")
    name = key.lstrip("+")
    if key.startswith("+") and name not in known and not name.startswith("hydra."):
        if config_dir is not None and (config_dir / name).is_dir():
            return override
        where = f"{config_dir} has no folder {name}/" if config_dir else "--config-dir DIR names the folder that has it"
        raise UsageError(f"{override}: {name!r} is neither an option nor a config group: {where}")
    if key.startswith("+") and not key.startswith("++") and name in known:
        raise UsageError(f"{override}: the option exists: write {name}={value}")
    key = name
    if key not in known and not key.startswith("hydra."):
        near = difflib.get_close_matches(key, known, 1, 0.5)
        raise UsageError(f"unknown option {key!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    if not value and key in known and known[key].default is None:
        return f"{key}=null"
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return f"{key}={quoted(value)}"
    if parsed.is_sweep_override() and not sweeps:
        if key in known and known[key].type == "str":
            return f"{key}={quoted(value)}"
        raise UsageError(f"{key}={value}: several values need --multirun, which trains once with each")
    return f"{key}={value}"


def quoted(value: object) -> str:
    """Return a value as Hydra's grammar takes it, whatever characters it holds."""
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
