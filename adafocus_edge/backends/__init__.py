"""Backends: ways to run a bundle's graphs, behind one contract."""
