"""`adafocus-edge evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from adafocus_edge.cli.options import DEFAULT_MODEL_NOTE, Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import progress_for, say, say_notes
from adafocus_edge.cli.process import print_error
from adafocus_edge.evaluation.settings import EvaluateOptions


@with_options
def evaluate(
    options: EvaluateOptions,
    model: Annotated[
        Path | None,
        typer.Argument(help="A bundle, or a checkpoint of any stage.", show_default="the default model"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a model on labelled clips: mAP, top-1 and top-5, per step and per class.

    Examples:
      adafocus-edge evaluate my-bundle --data clips/
      adafocus-edge evaluate ckpt.pth.tar --data val.csv --patches policy,random
    """
    del debug
    from adafocus_edge.bundle.store import default_bundle

    if model is None and options.engine is None:
        model = default_bundle()
        say(DEFAULT_MODEL_NOTE, quiet)
    from adafocus_edge.evaluation.run import check_files, evaluate_model

    check_files(model, options)

    @contextmanager
    def progress(clips: int) -> Iterator[Callable[[int], None]]:
        with progress_for(quiet) as bars:
            task = bars.add_task("evaluating", total=clips)
            yield lambda count: bars.update(task, completed=count)

    done = evaluate_model(model, options, lambda line: say(line, quiet), progress)
    for name, error in done.failed.items():
        print_error(f"skipped: {name}: {error}", 1)
    say_notes(done.notes, quiet)
    entry = done.to_json()
    with ExitStack() as stack:
        stack.callback(_print_evaluation, entry, as_json=as_json)  # even if a file cannot be written
        done.write(options.output, options.plot)
    if done.failed:
        raise typer.Exit(1)


def _print_evaluation(entry: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.system.json_lines import to_line

        typer.echo(to_line(entry))
        return
    from adafocus_edge.cli.tables import evaluation_tables, patches_table
    from adafocus_edge.system.console import console

    for table in [patches_table(entry)] if "patches" in entry else evaluation_tables(entry):
        console().print(table)
