"""The command line. A verb imports what it needs when it runs: help is instant, and a device needs no PyTorch."""

from __future__ import annotations

from typing import Annotated

import typer

from adafocus_edge import __version__
from adafocus_edge.cli.benchmark import BenchmarkVerb, benchmark
from adafocus_edge.cli.build import build
from adafocus_edge.cli.calibrate import calibrate
from adafocus_edge.cli.classify import classify
from adafocus_edge.cli.doctor import doctor
from adafocus_edge.cli.evaluate import evaluate
from adafocus_edge.cli.export import export_verb
from adafocus_edge.cli.export_triton import export_triton
from adafocus_edge.cli.help import MAX_WIDTH, Root, Verb
from adafocus_edge.cli.inspect import inspect
from adafocus_edge.cli.prepare import prepare
from adafocus_edge.cli.process import run_command
from adafocus_edge.cli.serve import serve
from adafocus_edge.cli.train import TrainVerb, train
from adafocus_edge.cli.tune import tune

RUN = "Run a model"
MAKE = "Make a model"
SUIT = "Suit it to a device"
MEASURE = "Measure and inspect"

app = typer.Typer(
    name="adafocus-edge",
    cls=Root,
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


app.command(cls=Verb, rich_help_panel=RUN)(classify)
app.command(cls=Verb, rich_help_panel=RUN)(serve)
app.command(cls=Verb, rich_help_panel=MAKE)(prepare)
app.command(cls=TrainVerb, rich_help_panel=MAKE)(train)
app.command("export", cls=Verb, rich_help_panel=MAKE)(export_verb)
app.command(cls=Verb, rich_help_panel=SUIT)(calibrate)
app.command(cls=Verb, rich_help_panel=SUIT)(build)
app.command(cls=Verb, rich_help_panel=SUIT)(tune)
app.command("export-triton", cls=Verb, rich_help_panel=SUIT)(export_triton)
app.command(cls=Verb, rich_help_panel=MEASURE)(evaluate)
app.command(cls=BenchmarkVerb, rich_help_panel=MEASURE)(benchmark)
app.command(cls=Verb, rich_help_panel=MEASURE)(inspect)
app.command(cls=Verb, rich_help_panel=MEASURE)(doctor)


def main() -> None:
    """Run the command line: every error becomes one line and an exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
