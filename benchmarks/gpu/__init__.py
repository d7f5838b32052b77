"""The check of a GPU machine, in parts: ``python -m benchmarks.gpu``, as run by ``scripts/gpu-check``."""
