"""From a bundle to more variants of it: FP16, INT8 and exit thresholds. Nothing is here yet."""
