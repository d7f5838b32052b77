"""A real Triton server for tests: NVIDIA's binary, with a backend of ours in place of its own for ONNX Runtime."""
