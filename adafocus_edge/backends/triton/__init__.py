"""NVIDIA Triton: writing a repository of models for the server, and running a model that it serves."""
