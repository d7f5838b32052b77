"""Outputs of live runs; no sink imports another."""
