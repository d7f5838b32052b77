"""`python -m adafocus_edge`, and `adafocus-edge`: the same."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported is told as it is later."""
    try:
        from adafocus_edge.cli.app import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
