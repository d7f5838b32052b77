"""The glimpse loop on a device: its memory, CUDA, the loops that stay there, and model frames made there."""
