"""An old path of documented names, kept for a release: import them from :mod:`adafocus_edge.media.preprocess`."""

from adafocus_edge.media.preprocess import (
    FrameMaker,
    model_frame,
    model_frames,
    motion_frame,
    motion_frame_indices,
    preprocess,
    sample_indices,
    sampled_frames,
)

__all__ = [
    "FrameMaker",
    "model_frame",
    "model_frames",
    "motion_frame",
    "motion_frame_indices",
    "preprocess",
    "sample_indices",
    "sampled_frames",
]
