"""A bundle's files for processes on other machines: found in the same folder there, or sent and unpacked."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from adafocus_edge.bundle.engines import variant_hash
from adafocus_edge.bundle.manifest import CLASSES, MANIFEST
from adafocus_edge.bundle.store import open_bundle
from adafocus_edge.errors import BundleError

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle


@dataclass(frozen=True)
class Shipped:
    """A bundle, by its folder and by what it holds.

    Attributes:
        folder: its path on the machine of the driver.
        variant: of it.
        identity: see :func:`identity`.
        names: paths in it of the files that one variant needs.
    """

    folder: str
    variant: str
    identity: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle, variant: str) -> Shipped:
        """Return what one variant of a bundle needs."""
        graphs = sorted(
            str(bundle.graph_path(variant, graph).relative_to(bundle.path))
            for graph in bundle.manifest.variants[variant]
        )
        own = str(bundle.path.resolve())
        return cls(own, variant, identity(bundle, variant), (MANIFEST, CLASSES, *graphs))

    def files(self) -> dict[str, bytes]:
        """Return the content of its files."""
        return {name: (Path(self.folder) / name).read_bytes() for name in self.names}

    def is_at(self, folder: Path) -> bool:
        """Whether a folder holds the same model."""
        try:
            bundle = open_bundle(folder)
        except BundleError:
            return False
        return self.variant in bundle.manifest.variants and identity(bundle, self.variant) == self.identity


def identity(bundle: Bundle, variant: str) -> str:
    """Return a SHA-256 of what decides a variant's results: its graphs, the model's shapes, preprocessing and classes.

    Profiles, reports and other variants may be added to a bundle without changing it.
    """
    manifest = bundle.manifest
    parts = [variant_hash(bundle, variant), manifest.model, manifest.preprocessing, manifest.classes_sha256]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


@contextmanager
def unpacked(shipped: Shipped, files: dict[str, bytes] | None) -> Iterator[Path]:
    """Provide the bundle's folder: its own if this machine has it, otherwise one that is made of ``files``.

    Raises ``BundleError`` if it is neither here nor given.
    """
    own = Path(shipped.folder)
    if shipped.is_at(own):
        yield own
        return
    if files is None:
        raise BundleError(f"{own}: has changed since the run began, or is not on this machine")
    with tempfile.TemporaryDirectory(prefix="adafocus-bundle-") as made:
        for name, content in files.items():
            path = Path(made) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(made)
