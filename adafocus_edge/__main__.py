"""The entry point of `adafocus-edge` and `python -m adafocus_edge`."""

import os
import sys

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
"""How many threads NumPy starts for its matrix products. Nothing here needs them, and they spin while they wait: on two
cores, importing NumPy takes 0.17 s of processor time with them and 0.08 s without."""


def main() -> None:
    """Run the command line; report Ctrl-C during its import as it is reported later."""
    os.environ.setdefault(BLAS_THREADS, "1")
    try:
        from adafocus_edge.cli.app import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
