"""The bundle on disk: its manifest, its variants, and the engines beside its graphs."""

from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.bundle.store import default_bundle, read_bundle

__all__ = ["Bundle", "default_bundle", "read_bundle"]
