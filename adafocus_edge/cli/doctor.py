"""`adafocus-edge doctor`."""

from __future__ import annotations

import json

import typer

from adafocus_edge.cli.options import Debug, Json, with_options


@with_options
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Report what this machine can run, what is missing, and the command that installs it.

    Examples:
      adafocus-edge doctor
    """
    del debug
    from adafocus_edge.doctor import examine, findings_json, findings_table
    from adafocus_edge.system.console import console

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings_json(findings), indent=2))
    else:
        console().print(findings_table(findings))
