"""The command line; Typer is imported here only."""
