"""Labelled clips, and how good a model is on them."""
