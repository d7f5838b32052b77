"""The command line. A verb imports what it needs when it runs: help is instant, and a device needs no PyTorch."""

from __future__ import annotations

from typing import Annotated

import typer

from adafocus_edge import __version__
from adafocus_edge.cli.benchmark import BenchmarkCommand, benchmark
from adafocus_edge.cli.build import build
from adafocus_edge.cli.calibrate import calibrate
from adafocus_edge.cli.classify import classify
from adafocus_edge.cli.doctor import doctor
from adafocus_edge.cli.evaluate import evaluate
from adafocus_edge.cli.export import export_verb
from adafocus_edge.cli.inspect import inspect
from adafocus_edge.cli.prepare import prepare
from adafocus_edge.cli.process import run_command
from adafocus_edge.cli.serve import serve
from adafocus_edge.cli.train import train
from adafocus_edge.cli.tune import tune

app = typer.Typer(
    name="adafocus-edge",
    help="Take an AdaFocus video model from a checkpoint to a device: export it, look into it, run it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"adafocus-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del version


app.command("export")(export_verb)
app.command()(train)
app.command()(prepare)
app.command()(evaluate)
app.command()(calibrate)
app.command()(build)
app.command(cls=BenchmarkCommand)(benchmark)
app.command()(tune)
app.command()(inspect)
app.command()(doctor)
app.command()(classify)
app.command()(serve)


def main() -> None:
    """Run the command line: every error becomes one line and an exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
