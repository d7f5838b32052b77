"""From a checkpoint to a bundle: four ONNX graphs, checked against PyTorch."""
