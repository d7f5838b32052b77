"""PyTorch side of AdaFocus Edge: the model and its checkpoints."""
