"""From a bundle to faster variants of it, FP16 and INT8, and exit thresholds; always with what they cost."""
