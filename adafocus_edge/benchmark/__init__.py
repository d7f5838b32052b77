"""Benchmarks: plan a grid of settings, measure each, and report accuracy against latency."""
