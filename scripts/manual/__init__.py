"""What the build of the manual adds to its pages: see ``hooks.py``."""
