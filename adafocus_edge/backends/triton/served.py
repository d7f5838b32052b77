"""What travels with a served model, so that a client without its bundle sees frames and names classes alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from adafocus_edge.bundle.engines import variant_hash
from adafocus_edge.bundle.manifest import Bundle, Manifest, Preprocessing, Provenance
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.spec import ModelSpec

if TYPE_CHECKING:
    from adafocus_edge.backends.triton.address import Address

FORMAT_VERSION = 1
PARAMETER = "adafocus_edge"
"""Name of the parameter of a model's configuration that holds the description."""
ServerBackend = Literal["onnxruntime", "tensorrt"]
"""Triton's backends that can run our graphs."""


@dataclass(frozen=True)
class Served:
    """The description of a served model.

    Attributes:
        model: its shapes and names.
        preprocessing: of frames, which the client does.
        classes: names, in the order of the logits.
        variant: of the bundle.
        graphs_sha256: one SHA-256 of the variant's four graphs, the same for the same model only.
        backend: of the server.
        version: Triton's number of the model's version.
        streams: sequences that may step together in one batch.
        clips: clips that may run together in one batch; 0 if only steps are served.
        idle_s: seconds without a frame after which the server forgets a sequence.
        gflops: multiply-adds per frame of each graph in units of 1e9.
        thresholds: of early exit, which the client applies.
        format_version: of this description.
    """

    model: ModelSpec
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    variant: str
    graphs_sha256: str
    backend: ServerBackend
    version: int
    streams: int
    clips: int
    idle_s: int
    gflops: dict[str, float]
    thresholds: dict[str, tuple[ExitThresholds, ...]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON holds it."""
        entry: dict[str, Any] = msgspec.to_builtins(self)
        return entry


@dataclass(frozen=True)
class ServedBundle(Bundle):
    """A served model in place of a bundle: all that a run reads of one, but no graphs.

    Attributes:
        served: its description.
        address: of its server.
    """

    served: Served
    address: Address

    @property
    def name(self) -> str:
        """Its address, for messages."""
        return str(self.address)

    def costs(self, variant: str) -> dict[str, float]:
        """Return the multiply-adds per frame of each graph in units of 1e9."""
        del variant  # there is only one
        return self.served.gflops


def read_served(text: str, where: str) -> Served:
    """Read a description. Raises ``BackendError`` that begins with ``where``."""
    try:
        version = msgspec.json.decode(text, type=_Versioned).format_version
        if version > FORMAT_VERSION:
            raise BackendError(
                f"{where}: its description has format version {version}, but this release reads {FORMAT_VERSION}: "
                "update adafocus-edge"
            )
        served = msgspec.json.decode(text, type=Served)
    except msgspec.DecodeError as error:
        raise BackendError(f"{where}: its description is damaged ({error}): export the repository again") from None
    if len(served.classes) != served.model.classes:
        raise BackendError(f"{where}: names {len(served.classes)} classes of {served.model.classes}: export it again")
    if served.preprocessing != Preprocessing.of(served.model):
        raise BackendError(f"{where}: uses preprocessing that this version does not support: update adafocus-edge")
    return served


class _Versioned(msgspec.Struct):
    format_version: int


def bundle_of(served: Served, address: Address) -> ServedBundle:
    """Return a served model as a run takes it."""
    manifest = Manifest(
        served.model, served.preprocessing, "", {served.variant: {}}, Provenance("", "", "", {}),
        thresholds=served.thresholds,
    )  # fmt: skip
    return ServedBundle(Path(address.slug), manifest, served.classes, served, address)


def check_same(served: ServedBundle, own: Bundle, variant: str) -> None:
    """Check that a server serves a variant of a bundle. Raises ``UsageError`` that names the difference."""
    asked = served.served.variant if variant == "auto" else variant
    if asked != served.served.variant:
        raise UsageError(f"{served.name}: serves the variant {served.served.variant}, not {asked}")
    if asked not in own.manifest.variants:
        raise UsageError(f"{served.name}: serves the variant {asked}, which {own.path} does not have")
    expected = variant_hash(own, asked)
    if served.served.graphs_sha256 != expected:
        raise UsageError(
            f"{served.name}: serves another model than {own.path} (graphs {served.served.graphs_sha256[:12]}, not "
            f"{expected[:12]}): export the bundle again with `adafocus-edge export-triton`, or give the server's own"
        )
    if served.classes != own.classes:
        raise UsageError(f"{served.name}: names other classes than {own.path}: export the bundle again")
