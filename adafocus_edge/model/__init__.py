"""The model: tensor shapes and graph names, logits, and exit thresholds."""
