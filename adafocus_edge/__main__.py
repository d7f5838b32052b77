"""The entry point of `adafocus-edge` and `python -m adafocus_edge`."""

import sys


def main() -> None:
    """Run the command line; report Ctrl-C during its import as it is reported later."""
    try:
        from adafocus_edge.cli.app import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
