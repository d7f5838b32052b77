"""The check of a GPU machine in parts: ``python -m benchmarks.gpu``, which ``scripts/gpu-check`` runs."""
