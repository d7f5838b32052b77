"""`python -m adafocus_edge`: the same as `adafocus-edge`."""

from adafocus_edge.cli import main

if __name__ == "__main__":
    main()
