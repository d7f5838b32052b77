"""`adafocus-edge train`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from adafocus_edge.cli.help import Rows, Verb
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import say, say_notes, show_stages
from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.system.companions import check_installed, import_companion

ROLE = re.compile(r":\w+:`~?([^`]+)`")
"""A cross-reference in a docstring."""
ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*)$")
"""An entry of the section ``Attributes`` of a docstring; what follows it, further indented, belongs to it."""


class TrainVerb(Verb):
    """The verb whose help lists the options of training, too: ``key=value`` each, with the default as the value."""

    def panels(self, ctx: Any) -> dict[str, Rows]:
        """Return the rows of the verb's panels, and of the groups of training options."""
        return {**_training_options(), **super().panels(ctx)}


@with_options
def train(
    options: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="Options of training: the official code's names, and ours."),
    ],
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Train once with each of several values: epochs=5,10.")
    ] = False,
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", "-cd", help="Folder of your own config files: preset/NAME.yaml, GROUP/NAME.yaml."),
    ] = None,
    cfg: Annotated[
        str | None, typer.Option("--cfg", "-c", metavar="job", help="Print the composed options as YAML and exit.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one of the four stages of a model, or all of them in turn.

    Options of training are written KEY=VALUE; below, the value is the default. hydra.run.dir=DIR sets the run folder.

    Examples:
      adafocus-edge train dataset=custom data_dir=data stages=all export=true
      adafocus-edge train dataset=custom data_dir=data preset=edge train_stage=1
      adafocus-edge train dataset=custom data_dir=data train_stage=2 resume=FILE
    """
    del debug
    if cfg not in (None, "job"):
        raise UsageError(f"--cfg {cfg}: must be job, the options of training")
    check_installed("torch", "train", "train")
    # Before PyTorch is loaded, which takes seconds.
    compose = import_companion("training.compose", "train", "train")
    runs = compose.sweep(options) if multirun else [options]
    composed = [compose.compose_options(run, config_dir) for run in runs]
    if cfg is not None:
        for one in composed:
            typer.echo(compose.as_yaml(one.options), nl=False)
        return
    for number, one in enumerate(composed, start=1):
        if multirun:
            say(f"run {number} of {len(composed)}: {one.run_dir}", quiet)
        if one.options.stages:
            all_stages = import_companion("training.all_stages", "train", "train")
            if one.options.export:  # missing libraries are reported before hours of training
                import_companion("export.exporter", "train", "export")
            all_stages.train_all(one, quiet, as_json=as_json, export=partial(_export, quiet=quiet))
        else:
            import_companion("training.train", "train", "train").run_composed(one, quiet, as_json=as_json)


def _export(checkpoint: Path, bundle: Path, *, quiet: bool) -> None:
    """Export a finished model."""
    exporter = import_companion("export.exporter", "train", "export")
    with show_stages(quiet) as progress:
        made = exporter.export(checkpoint, bundle, exporter.ExportOptions(model=exporter.ModelOptions()), progress)
    for warning in made.warnings:
        say(f"warning: {warning}", quiet)
    say_notes(made.notes, quiet)


def _training_options() -> dict[str, Rows]:
    """Return the options of training by group: name and default, and the first sentence of the description."""
    try:
        training = import_companion("training.options", "train", "train")
    except AdaFocusError as error:
        return {"Training options": [("KEY=VALUE", f"Cannot be listed: {error}")]}
    described = _attributes(training.TrainOptions)
    defaults = {field.name: field.default for field in dataclasses.fields(training.TrainOptions)}

    def row(name: str) -> tuple[str, str]:
        text = ROLE.sub(r"\1", described.get(name, ""))
        text = text[:1].upper() + text[1:].replace("``", "")
        text = re.split(r"(?<=\w)\. (?=[A-Z])", text)[0].rstrip(".")
        chosen = [f"'{one}'" if str(one).strip() in ("", ",") else str(one) for one in training.CHOICES.get(name, ())]
        facts = f" [choices: {', '.join(chosen)}]" if chosen else ""
        return f"{name}={_written(defaults[name])}", text.removeprefix("``") + "." * bool(text) + facts

    groups: dict[str, tuple[str, ...]] = dict(training.GROUPS)
    grouped = {name for names in groups.values() for name in names} | training.UNUSED
    if others := tuple(name for name in defaults if name not in grouped):
        groups["Others"] = others
    rows = {title: [row(name) for name in names] for title, names in groups.items()}
    return {**rows, "Accepted without effect": [("", ", ".join(sorted(training.UNUSED)))]}


def _attributes(documented: Any) -> dict[str, str]:
    """Return the description of each attribute in a docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(documented) or "").splitlines():
        if entry := ATTRIBUTE.match(line):
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def _written(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
