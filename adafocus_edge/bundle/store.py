"""The bundle on disk: a folder of graphs and a manifest, written whole or not at all, refused if anything is off."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from adafocus_edge.errors import BundleError, UsageError
from adafocus_edge.media.preprocess import INTERPOLATION, short_side
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.spec import GRAPHS, MOST_SEGMENTS, STEP_GRAPH, Fit, ModelSpec, TensorSpec, class_name, contract
from adafocus_edge.system.files import decode_text, draft_folder, locked, read_own, read_text, reason, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FORMAT_VERSION = 1
MEAN = (0.485, 0.456, 0.406)
"""ImageNet's, per RGB channel of pixels / 255."""
STD = (0.229, 0.224, 0.225)
MANIFEST = "bundle.json"
CLASSES = "classes.txt"
LOCK = ".lock"
"""Held in a bundle's folder by the process that changes it."""
VARIANT_PREFERENCE = ("fp32",)
"""What ``--variant auto`` takes, best first. Variants that a calibration adds are chosen by name."""


@dataclass(frozen=True)
class GraphInfo:
    """One graph of one variant.

    Attributes:
        file: path within the bundle, with forward slashes.
        sha256: of the file, in hex.
        size_bytes: of the file.
        precision: of its arithmetic, such as ``fp32``.
        opset: ONNX operator set version.
        inputs: what it takes.
        outputs: what it gives.
        gflops: multiply-adds per frame in units of 1e9, as the paper counts.
    """

    file: str
    sha256: str
    size_bytes: int
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gflops: float


@dataclass(frozen=True)
class Preprocessing:
    """What a frame goes through before it reaches a graph, and what the graphs then do inside.

    Attributes:
        short_side: pixels to which the short side is resized; both sides where ``fit`` is ``squash``.
        crop: S, side of the centre crop in pixels.
        interpolation: of that resize.
        mean: subtracted inside the graphs, per RGB channel of pixels / 255.
        std: divided by inside the graphs.
        fit: see :class:`ModelSpec`.
        motion_gap_s: see :class:`ModelSpec`.
    """

    short_side: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"
    motion_gap_s: float = 0.0

    @classmethod
    def of(cls, spec: ModelSpec) -> Preprocessing:
        """Return a model's preprocessing: the official evaluation's, unless it is told otherwise."""
        short = short_side(spec.frame_size) if spec.fit == "crop" else spec.frame_size
        return cls(short, spec.frame_size, INTERPOLATION, MEAN, STD, spec.fit, spec.motion_gap_s)


@dataclass(frozen=True)
class Setting:
    """A setting that a model's weights do not tell, and where its value comes from.

    Attributes:
        value: as the bundle has it.
        origin: ``checkpoint``: recorded there; ``weights``: what fits them; ``option``: asked for, and read from
            nowhere; ``default``: the official models' value, assumed.
        trained: what the checkpoint records, where an option contradicts it.
    """

    value: int | float | str
    origin: Literal["checkpoint", "weights", "option", "default"]
    trained: int | float | str | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from.

    Attributes:
        checkpoint: file name of the checkpoint.
        checkpoint_sha256: of that file.
        created: UTC time, ISO 8601.
        tools: versions of what made it.
        settings: those that weights do not tell, by the model's field; empty in bundles of before 0.2.
    """

    checkpoint: str
    checkpoint_sha256: str
    created: str
    tools: dict[str, str]
    settings: dict[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A setting that `adafocus-edge tune` found for a demand on a device.

    Attributes:
        backend: that ran it.
        variant: of the bundle.
        schedule: ``clip`` or ``stream``.
        segments: frames of a clip.
        threads: for computing on the CPU.
        exit: ``SET/ORDER`` of exit thresholds, or empty.
        device: it was measured on.
        demand: that it meets, in words.
        latency_ms: the latency that was demanded, as measured.
        top1: in percent, on the clips that it was measured on.
        clips: how many those were.
        created: UTC time, ISO 8601.
        notes: what that accuracy is worth, a line each.
    """

    backend: str
    variant: str
    schedule: Literal["clip", "stream"]
    segments: int
    threads: int
    exit: str
    device: str
    demand: str
    latency_ms: float
    top1: float
    clips: int
    created: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What ``bundle.json`` holds.

    Attributes:
        model: shapes and names of the model.
        preprocessing: of frames.
        classes_sha256: of ``classes.txt``.
        variants: graphs by variant and graph name.
        provenance: where it comes from.
        thresholds: named sets of exit thresholds, each for one or more orders of frames.
        profiles: settings that `adafocus-edge tune` found, by name.
        reports: free-form reports: the export's parity, the calibration's accuracy.
        format_version: of this manifest.
    """

    model: ModelSpec
    preprocessing: Preprocessing
    classes_sha256: str
    variants: dict[str, dict[str, GraphInfo]]
    provenance: Provenance
    thresholds: dict[str, tuple[ExitThresholds, ...]] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and found whole.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        classes: the class names, in the order of the logits.
    """

    path: Path
    manifest: Manifest
    classes: tuple[str, ...]

    @property
    def model(self) -> ModelSpec:
        """The model's shapes and names."""
        return self.manifest.model

    def choose_variant(self, name: str = "auto") -> str:
        """Return the variant to use. Raises ``UsageError`` that lists what there is."""
        variants = self.manifest.variants
        if name == "auto":
            return next((best for best in VARIANT_PREFERENCE if best in variants), next(iter(variants)))
        if name not in variants:
            raise UsageError(f"{self.path}: no variant {name!r}; it holds: {', '.join(variants)}")
        return name

    def profile(self, name: str) -> Profile:
        """Return a named profile. Raises ``UsageError`` if there is none, or if it no longer fits the bundle."""
        profiles = self.manifest.profiles
        if name not in profiles:
            known = ", ".join(profiles) or "none: `adafocus-edge tune` makes them"
            raise UsageError(f"{self.path}: no profile {name!r}; there are: {known}")
        found = profiles[name]
        kind, _, order = found.exit.partition("/")
        orders = [one.order for one in self.manifest.thresholds.get(kind, ())]
        if found.variant not in self.manifest.variants or (found.exit and order not in orders):
            raise UsageError(f"{self.path}: profile {name!r} uses what the bundle no longer has: tune again")
        if found.threads < 1 or not 1 <= found.segments <= MOST_SEGMENTS:
            raise UsageError(f"{self.path}: profile {name!r} asks for what cannot be: tune again")
        return found

    def graph_path(self, variant: str, graph: str) -> Path:
        """Return the file of one graph."""
        return self.path / self.manifest.variants[variant][graph].file


def default_bundle() -> Path:
    """Return the folder of the model that ships with the product (its ``MODEL_CARD.md`` says what it is for)."""
    return Path(__file__).parents[1] / "default_model"


_State = tuple[int, ...]
"""What changes with a file's content: device, inode, size, and the times of its last changes in nanoseconds."""
_hashed: dict[_State, str] = {}
"""SHA-256 of the files that this process has read, by their states then."""
SETTLED_NS = 100_000_000
"""A file that was changed so shortly before it is hashed may change again within one tick of its disk's clock."""


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex. A file that has not changed since this process has hashed it is not read again.

    Raises ``OSError``.
    """
    known = _hashed.get(_state(path.stat()))
    if known is not None:
        return known
    now_ns = time.time_ns()
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        after = os.fstat(file.fileno())
    changed_ns = max(after.st_mtime_ns, after.st_ctime_ns)
    if _state(before) == _state(after) and changed_ns < now_ns - SETTLED_NS:
        _hashed[_state(after)] = digest.hexdigest()
    return digest.hexdigest()


def _state(found: os.stat_result) -> _State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_unchanged(path: Path, sha256: str) -> None:
    """Check that a file is what it was when its bundle was made. Raises ``BundleError``."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    if found != sha256:
        raise BundleError(f"{path}: changed since the bundle was made (its SHA-256 differs)")


def read_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check all of it: version, every hash, and that the graphs fit together.

    Raises ``BundleError`` that names the file and what is wrong with it.
    """
    bundle = open_bundle(path)
    check_graph_files(bundle)
    return bundle


def open_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check all of it but the graphs' content, which takes longest: :func:`check_graph_files` does.

    Raises ``BundleError`` that names the file and what is wrong with it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle (a folder that `adafocus-edge export` wrote)")
    manifest = _read_manifest(folder)
    _check_names(folder, manifest)
    check_unchanged(folder / CLASSES, manifest.classes_sha256)
    _check_graphs(folder, manifest)
    classes = _class_lines(folder / CLASSES)
    check_classes(classes, manifest.model.classes, str(folder / CLASSES))
    return Bundle(folder, manifest, classes)


def check_graph_files(bundle: Bundle, variant: str | None = None) -> None:
    """Check the content of every graph of a bundle, or of one variant.

    Called again after graphs were loaded, it says whether what was loaded is what was hashed, and reads nothing again
    that has not changed. Raises ``BundleError`` that names the first that has changed.
    """
    variants = bundle.manifest.variants
    infos = [info for name, graphs in variants.items() if variant in (None, name) for info in graphs.values()]
    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
        for _ in pool.map(lambda info: check_unchanged(bundle.path / info.file, info.sha256), infos):
            pass


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one per line, in UTF-8; empty lines at the end do not count.

    Raises ``BundleError``, also where two lines name the same class.
    """
    names = _class_lines(path)
    check_distinct(names, str(path))
    return names


def check_distinct(names: Sequence[str], origin: str) -> None:
    """Check that no two classes have the same name. Raises ``BundleError`` that begins with ``origin``."""
    lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if (line := lines.setdefault(name, number)) != number:
            raise BundleError(
                f"{origin}: lines {line} and {number} both name the class {name!r}: give each its own name"
            )


def _class_lines(path: Path) -> tuple[str, ...]:
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such class file") from None
    except (OSError, UnicodeError) as error:
        raise BundleError(f"{path}: not a list of class names in UTF-8 ({reason(error)})") from None
    lines = [class_name(line.strip()) for line in text.rstrip().splitlines()]
    if not lines:
        raise BundleError(f"{path}: no class names in it")
    for number, line in enumerate(lines, start=1):
        if not line:
            raise BundleError(f"{path}: line {number} is empty; there must be one class name per line")
    return tuple(lines)


def same_classes(own: Sequence[str], given: Sequence[str]) -> bool:
    """Whether two lists of class names say the same in the same order; ways to encode one letter do not count."""
    return [*map(class_name, own)] == [*map(class_name, given)]


def first_difference(own: Sequence[str], given: Sequence[str]) -> str:
    """Say where two lists of class names differ first."""
    for number, (before, now) in enumerate(zip(own, given, strict=False)):
        if not same_classes([before], [now]):
            return f"class {number} was {before!r}, and is now {now!r}"
    return f"there were {len(own)} classes, and are now {len(given)}"


def check_class_order(own: Sequence[str] | None, given: Sequence[str], where: str) -> None:
    """Raise ``UsageError`` if a file names a model's own classes in another order: every label would be wrong."""
    if own and not same_classes(own, given) and same_classes(sorted(own), sorted(given)):
        raise UsageError(f"{where}: the model's own classes in another order ({first_difference(own, given)})")


def encode_manifest(manifest: Manifest) -> bytes:
    """Return ``bundle.json``'s bytes, indented for people."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


@contextmanager
def new_bundle(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write a bundle into; on success it takes that name in one step.

    On any error, interruption included, nothing is left of it and what was at ``path`` is untouched. Raises
    ``UsageError`` if something is there and ``replace`` is not set, and ``BundleError`` for what the disk refuses.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not replace:
        raise UsageError(f"{path}: exists already; give another name, or --force to replace it")
    if path.exists() and not (path / MANIFEST).is_file():
        raise UsageError(f"{path}: exists and is no bundle, so it is not replaced")
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        with _draft(path) as draft:
            yield draft
            with _told(path):
                _sync(draft)
                if replace and path.exists():
                    with changing(path):
                        _exchange(draft, path)
                else:
                    draft.rename(path)
    finally:
        for parent in missing:  # the deepest first; one that holds something stays
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Give a folder beside a bundle that is to be, and tell what the disk refuses of it."""
    with ExitStack() as stack:
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = stack.enter_context(draft_folder(path.parent, f".{path.name}.", ".part"))
            draft.chmod(0o755)
        with writing(path, draft):
            yield draft


@contextmanager
def writing(path: Path, draft: Path) -> Iterator[None]:
    """Tell what the disk refuses while a bundle's parts are made, in a folder and in the system's for temporary files.

    Args:
        path: of the bundle.
        draft: the folder.
    """
    try:
        yield
    except OSError as error:
        files = [Path(os.fsdecode(file)) for file in (error.filename, error.filename2) if file is not None]
        where = str(path)
        if not files:  # a full disk does not say of what file
            temporary = Path(tempfile.gettempdir())
            if _free_bytes(temporary) < _free_bytes(draft):
                where = f"{temporary} (set TMPDIR)"
        elif not any(file.is_relative_to(draft) for file in files):
            raise
        raise BundleError(f"{where}: cannot be written ({_reason(error)})") from error


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _reason(error: OSError) -> str:
    """Return what the disk says, of the first file where there are several."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][2]).partition("] ")[2].partition(": '")[0]
    return error.strerror or str(error)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell in words what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({_reason(error)})") from error


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Wait until no other process changes a bundle, and keep them waiting meanwhile. Raises ``BundleError``."""
    with _told(path), locked(path / LOCK, wait=True):
        yield


def copy_bundle(source: Path, target: Path) -> Bundle:
    """Copy a bundle, whole or not at all, and return the copy, which was checked.

    Raises ``UsageError`` if something is there, ``BundleError``.
    """
    ours = _ours(source, _read_manifest(source))

    def left_out(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(".") or name == "__pycache__"} | ours(folder, names)

    with new_bundle(target) as draft:
        with _told(target):
            shutil.copytree(source, draft, dirs_exist_ok=True, ignore=left_out)
        try:
            copied = read_bundle(draft)
        except BundleError:
            raise BundleError(f"{source}: was changed while it was copied: run again") from None
    return replace(copied, path=target)


def _ours(path: Path, manifest: Manifest) -> Callable[[str, list[str]], set[str]]:
    """Return what says which links in a bundle's folder are not copied: those to what its manifest does not name.

    They may lead to anything on this machine, or back up.
    """
    files = {info.file for graphs in manifest.variants.values() for info in graphs.values()}
    named = {path / name for name in (MANIFEST, CLASSES, *manifest.variants, *files)}

    def others(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if (Path(folder) / name).is_symlink() and Path(folder) / name not in named}

    return others


def copied_bundle(source: Bundle, target: Path) -> Bundle:
    """Return a bundle's copy: the one that is at ``target`` if it is one, whatever was added to it, else a new one.

    Raises ``UsageError`` if something else is there, ``BundleError``.
    """
    if not target.exists():
        return copy_bundle(source.path, target)
    if not (target / MANIFEST).is_file() or _origin(_read_manifest(target)) != _origin(source.manifest):
        raise UsageError(f"{target}: exists already and is no copy of {source.path}; give another name")
    return read_bundle(target)


def _origin(manifest: Manifest) -> tuple[Any, ...]:
    """Return what a bundle keeps through calibrations and tunings."""
    return manifest.model, manifest.provenance, manifest.classes_sha256, manifest.variants.get(VARIANT_PREFERENCE[0])


def update_bundle(
    path: Path, change: Callable[[Manifest], Manifest], variant: str | None = None, folder: Path | None = None
) -> Bundle:
    """Change a bundle's manifest, and with it add or replace one variant, so that the bundle is whole at every moment.

    Args:
        path: the bundle.
        change: makes the new manifest from the one that is there now; no other process writes the bundle meanwhile.
        variant: name of the variant that ``folder`` holds.
        folder: its graphs, on the same disk; it is moved into the bundle.

    Returns:
        the bundle, read back. Raises ``BundleError``.
    """
    path = path.resolve()
    _read_manifest(path)  # what is no bundle gets no lock file
    with changing(path):
        before = _read_manifest(path)
        manifest = change(before)
        if variant is None or folder is None:
            _write_manifest(path, manifest)
        elif variant not in before.variants:
            _sync(folder)
            shutil.rmtree(path / variant, ignore_errors=True)  # of a run that was killed before it was listed
            folder.rename(path / variant)
            _write_manifest(path, manifest)
        else:
            with _draft(path) as draft:
                ours = _ours(path, before)

                def replaced(folder: str, names: list[str]) -> set[str]:
                    found = {variant, MANIFEST} & set(names) if Path(folder) == path else set()
                    return found | ours(folder, names)

                shutil.copytree(path, draft, dirs_exist_ok=True, ignore=replaced, copy_function=_link)
                folder.rename(draft / variant)
                _write_manifest(draft, manifest)
                _sync(draft)
                _exchange(draft, path)
        return read_bundle(path)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    with whole_file(folder / MANIFEST) as file:
        file.write(encode_manifest(manifest))


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the disk knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        with suppress(FileNotFoundError):  # what a build beside this one has removed meanwhile
            shutil.copy2(source, target)


EXCHANGE = 2
"""Linux' RENAME_EXCHANGE."""
CURRENT_FOLDER = -100
"""Linux' AT_FDCWD."""


def _exchange(new: Path, old: Path) -> None:
    """Put a folder in another's place, in one step where the system can; else one of the two is there afterwards."""
    if _swapped(new, old):
        return  # what was there is now the draft, which is removed
    aside = new.with_suffix(".old")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    """Let two folders change names in one step, if the system and the disk know how."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(CURRENT_FOLDER, os.fsencode(one), CURRENT_FOLDER, os.fsencode(other), EXCHANGE) == 0)


def _sync(folder: Path) -> None:
    """Force every file to the disk, so that a power cut after the rename finds whole files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def check_classes(names: Sequence[str], count: int, origin: str) -> None:
    """Check that class names can be written one per line and are as many as the model has.

    Raises ``BundleError`` that begins with ``origin``.
    """
    if len(names) != count:
        raise BundleError(f"{origin}: names {len(names)} classes, but the model has {count}")
    for number, name in enumerate(names):
        if not name.strip() or name != name.strip() or len(name.splitlines()) != 1:
            raise BundleError(f"{origin}: class {number} is named {name!r}, which is no line of text")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content = decode_text(read_own(path))
    except UnicodeError as error:
        raise BundleError(f"{path}: damaged or not a manifest ({error})") from None
    except OSError:
        raise BundleError(f"{path}: missing or unreadable, so {folder} is no bundle") from None
    try:
        version = msgspec.json.decode(content, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{path}: format version {version}, but this adafocus-edge reads version {FORMAT_VERSION}: "
                + ("update adafocus-edge" if version > FORMAT_VERSION else "export it again")
            )
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:  # a ValidationError is a DecodeError
        raise BundleError(f"{path}: damaged or not a manifest ({error})") from None


class _Versioned(msgspec.Struct):
    format_version: int


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Check that every file is there, in its own variant's folder."""
    names = [CLASSES]
    for variant, graphs in manifest.variants.items():
        for info in graphs.values():
            parts = PurePosixPath(info.file).parts
            if len(parts) != 2 or parts[0] != variant or ".." in parts or "\\" in info.file:
                raise BundleError(f"{folder / MANIFEST}: {info.file!r} is not a file of variant {variant!r}")
            names.append(info.file)
    for name in names:
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: missing from the bundle")


def _check_graphs(folder: Path, manifest: Manifest) -> None:
    if manifest.preprocessing != Preprocessing.of(manifest.model):
        raise BundleError(f"{folder / MANIFEST}: asks for a preprocessing that this adafocus-edge does not do")
    for name, sets in manifest.thresholds.items():
        if any(len(one.values) != manifest.model.segments for one in sets):
            raise BundleError(f"{folder / MANIFEST}: thresholds {name!r} are not one per frame of a clip")
    if not manifest.variants:
        raise BundleError(f"{folder / MANIFEST}: no variant in it")
    for variant, graphs in manifest.variants.items():
        missing = [graph for graph in GRAPHS if graph not in graphs]
        unknown = [graph for graph in graphs if graph not in (*GRAPHS, STEP_GRAPH)]
        if missing or unknown:
            named = f"no {missing[0]}" if missing else f"an unknown graph {unknown[0]!r}"
            raise BundleError(f"{folder / MANIFEST}: variant {variant!r} has {named}")
        for graph, info in graphs.items():
            for kind, expected, actual in zip(
                ("inputs", "outputs"), contract(manifest.model, graph), (info.inputs, info.outputs), strict=True
            ):
                if expected != actual:
                    raise BundleError(
                        f"{folder / MANIFEST}: the {kind} of {variant}/{graph} do not fit the model: "
                        f"{describe_tensors(actual)} instead of {describe_tensors(expected)}"
                    )


def describe_tensors(tensors: tuple[TensorSpec, ...]) -> str:
    """Return tensors as ``name type[shape], ...``."""
    return ", ".join(f"{t.name} {t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors)
