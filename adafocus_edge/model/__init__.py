"""The model's shapes and names, its logits, and its exit thresholds."""
