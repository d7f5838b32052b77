"""`adafocus-edge benchmark` and `tune`: accuracy against latency, on the device at hand."""
