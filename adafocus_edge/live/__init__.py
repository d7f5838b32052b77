"""Live runs: reading sources, running the model, and sending its results to outputs."""
