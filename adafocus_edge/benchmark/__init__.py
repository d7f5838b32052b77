"""Benchmarks: what is measured, how, and what is made of it."""
