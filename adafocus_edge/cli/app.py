"""The command line. A verb imports what it needs when it runs: help is instant, and a device needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer

from adafocus_edge import __version__
from adafocus_edge.cli.help import MAX_WIDTH, Root, Verb
from adafocus_edge.cli.process import run_command

RUN = "Run a model"
MAKE = "Make a model"
SUIT = "Suit it to a device"
MEASURE = "Measure and inspect"


class _Place(NamedTuple):
    """Where a verb is: its panel in the help, its module in this package, and the names of its function and class."""

    panel: str
    module: str
    function: str = ""
    kind: str = ""


VERBS = {
    "classify": _Place(RUN, "classify"),
    "serve": _Place(RUN, "serve"),
    "prepare": _Place(MAKE, "prepare"),
    "train": _Place(MAKE, "train", kind="TrainVerb"),
    "export": _Place(MAKE, "export", "export_verb"),
    "calibrate": _Place(SUIT, "calibrate"),
    "build": _Place(SUIT, "build"),
    "tune": _Place(SUIT, "tune"),
    "export-triton": _Place(SUIT, "export_triton"),
    "evaluate": _Place(MEASURE, "evaluate"),
    "benchmark": _Place(MEASURE, "benchmark", kind="BenchmarkVerb"),
    "inspect": _Place(MEASURE, "inspect"),
    "doctor": _Place(MEASURE, "doctor"),
}
"""All verbs, in the order of the help."""


class _Verbs(Mapping[str, Any]):
    """The commands of all verbs; a verb is imported when it is looked up: one run needs one."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            panel, module, function, kind = VERBS[name]
            found = import_module(f"adafocus_edge.cli.{module}")
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            verb = alone.command(name, cls=getattr(found, kind) if kind else Verb, rich_help_panel=panel)
            verb(getattr(found, function or module))
            self._made[name] = typer.main.get_command(alone)
        return self._made[name]


class _Program(Root):
    """The root command, with verbs that are imported when they are needed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Verbs()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all verbs."""
        del ctx
        return list(VERBS)


app = typer.Typer(
    name="adafocus-edge",
    cls=_Program,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"adafocus-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train, export and calibrate AdaFocus video models, and run them on a device.

    Examples:
      adafocus-edge classify clip.mp4    # with the default model
      adafocus-edge serve 0              # a camera, on a page in the browser
      adafocus-edge VERB --help          # options and examples of a verb
    """
    del version


def main() -> None:
    """Run the command line: every error becomes one line and an exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
