"""A bundle's files for processes on other machines: found in the same folder there, or sent and unpacked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.bundle.store import sha256_of
from adafocus_edge.errors import BundleError

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle

MANIFEST = "bundle.json"


@dataclass(frozen=True)
class Shipped:
    """A bundle, by its folder and by what it holds.

    Attributes:
        folder: its path on the machine of the driver.
        sha256: of its manifest, which has the hashes of all other files.
        names: paths in it of the files that one variant needs.
    """

    folder: str
    sha256: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle, variant: str) -> Shipped:
        """Return what one variant of a bundle needs."""
        graphs = sorted(
            str(bundle.graph_path(variant, graph).relative_to(bundle.path))
            for graph in bundle.manifest.variants[variant]
        )
        own = str(bundle.path.resolve())
        return cls(own, sha256_of(bundle.path / MANIFEST), (MANIFEST, "classes.txt", *graphs))

    def files(self) -> dict[str, bytes]:
        """Return the content of its files."""
        return {name: (Path(self.folder) / name).read_bytes() for name in self.names}


@contextmanager
def unpacked(shipped: Shipped, files: dict[str, bytes] | None) -> Iterator[Path]:
    """Provide the bundle's folder: its own if this machine has it, otherwise one that is made of ``files``.

    Raises ``BundleError`` if it is neither here nor given.
    """
    own = Path(shipped.folder)
    if (own / MANIFEST).is_file() and sha256_of(own / MANIFEST) == shipped.sha256:
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
