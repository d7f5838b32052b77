"""AdaFocus Edge: take an AdaFocus video model from a checkpoint to a device.

The names in ``__all__`` are imported on first use, so that importing the package itself takes no time.

Example::

    import adafocus_edge
    from adafocus_edge.bundle.store import default_bundle
    from adafocus_edge.media.preprocess import sampled_frames
    from adafocus_edge.media.sources import Source

    bundle = adafocus_edge.read_bundle(default_bundle())
    clip = Source("clip", "clip.mp4").open_clip()
    with adafocus_edge.load_model(bundle) as model:
        stream = adafocus_edge.GlimpseStream(model)
        for index, frame in sampled_frames(clip, bundle.spec):
            glimpse = stream.see([frame])  # .origins float32 [1, 2], .logits float32 [1, C]
    print(bundle.classes[glimpse.logits[0].argmax()])
"""

import os

TYPE_CHECKING = False  # typing's takes milliseconds to import
if TYPE_CHECKING:
    from adafocus_edge.api import AdaFocus as AdaFocus
    from adafocus_edge.backends.registry import load_model as load_model
    from adafocus_edge.bundle.store import read_bundle as read_bundle
    from adafocus_edge.runtime.glimpse import GlimpseStream as GlimpseStream
    from adafocus_edge.runtime.lanes import Lanes as Lanes
    from adafocus_edge.runtime.prediction import Prediction as Prediction

# ONNX Runtime 1.31 collects telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["AdaFocus", "GlimpseStream", "Lanes", "Prediction", "load_model", "read_bundle", "__version__"]  # noqa: RUF022
_HOMES = {
    "AdaFocus": "adafocus_edge.api",
    "Prediction": "adafocus_edge.runtime.prediction",
    "GlimpseStream": "adafocus_edge.runtime.glimpse",
    "Lanes": "adafocus_edge.runtime.lanes",
    "load_model": "adafocus_edge.backends.registry",
    "read_bundle": "adafocus_edge.bundle.store",
}


def __getattr__(name: str) -> object:
    """Import and return a public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the module, including those that are not imported yet."""
    return sorted({*globals(), *__all__})
