"""Live runs: reading sources, the run, what it reports, and where that goes."""
