"""The bundle on disk: a folder of graphs and a manifest, written atomically and rejected if any check fails."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from adafocus_edge.bundle.classes import check_classes, class_lines
from adafocus_edge.bundle.manifest import (
    CLASSES,
    FORMAT_VERSION,
    MANIFEST,
    READABLE,
    Bundle,
    Manifest,
    Preprocessing,
    encode_manifest,
)
from adafocus_edge.bundle.variants import VARIANT_PREFERENCE
from adafocus_edge.errors import BundleError, UsageError
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, TensorSpec, contract
from adafocus_edge.system.files import atomic_write, decode_text, draft_folder, locked, read_own, reason, writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK = ".lock"
"""File in a bundle's folder, locked by the process that changes the bundle."""


def default_bundle() -> Path:
    """Return the folder of the model that ships with the product (its ``MODEL_CARD.md`` describes its purpose)."""
    return Path(__file__).parents[1] / "default_model"


_State = tuple[int, ...]
"""A file's device, inode, size, and the times of its last changes in nanoseconds: they change with its content."""
_hashed: dict[_State, str] = {}
"""SHA-256 of the files that this process has read, by their states at that time."""
SETTLED_NS = 100_000_000
"""A file changed less than this before it is hashed may change again within one tick of its disk's clock."""


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex. A file that has not changed since this process hashed it is not read again.

    Raises ``OSError``.
    """
    known = _hashed.get(_state(path.stat()))
    if known is not None:
        return known
    now_ns = time.time_ns()
    digest, before, after = _read_digest(path)
    changed_ns = max(after.st_mtime_ns, after.st_ctime_ns)
    if _state(before) == _state(after) and changed_ns < now_ns - SETTLED_NS:
        _hashed[_state(after)] = digest
    return digest


def _read_digest(path: Path) -> tuple[str, os.stat_result, os.stat_result]:
    """Read a file; return its SHA-256 in hex, and its state before and after. Raises ``OSError``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest(), before, os.fstat(file.fileno())


def _state(found: os.stat_result) -> _State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_unchanged(path: Path, sha256: str) -> None:
    """Check that a file has not changed since its bundle was made. Raises ``BundleError``."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    if found != sha256:
        raise BundleError(f"{path}: changed since the bundle was made (its SHA-256 differs)")


def read_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check all of it: format version, every hash, and that its graphs fit together.

    Args:
        path: the bundle's folder, such as :func:`default_bundle`.

    Returns:
        the bundle; among others ``.spec``, the model's shapes, and ``.classes``, the names of its C classes.

    Raises:
        BundleError: the bundle is missing, damaged, changed, or of another format version; names the file and the
            problem.

    Example::

        bundle = read_bundle("my-bundle")
        print(bundle.spec.frame_size, bundle.classes)
    """
    bundle = open_bundle(path)
    check_graph_files(bundle)
    return bundle


def open_bundle(path: Path | str) -> Bundle:
    """Read a bundle and check all of it except the content of the graphs, which :func:`check_graph_files` checks.

    Raises ``BundleError`` that names the file and what is wrong with it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle (a folder written by `adafocus-edge export`)")
    manifest = _read_manifest(folder)
    _check_names(folder, manifest)
    check_unchanged(folder / CLASSES, manifest.classes_sha256)
    _check_graphs(folder, manifest)
    classes = class_lines(folder / CLASSES)
    check_classes(classes, manifest.model.classes, str(folder / CLASSES))
    return Bundle(folder, manifest, classes)


def check_graph_files(bundle: Bundle, variant: str | None = None) -> None:
    """Check the content of every graph of a bundle, or of one variant.

    Called again after graphs were loaded, it confirms that the loaded files are those that were hashed; files that have
    not changed are not read again. Raises ``BundleError`` that names the first file that has changed.
    """
    variants = bundle.manifest.variants
    infos = [info for name, graphs in variants.items() if variant in (None, name) for info in graphs.values()]
    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
        for _ in pool.map(lambda info: check_unchanged(bundle.path / info.file, info.sha256), infos):
            pass


@contextmanager
def new_bundle(
    path: Path, *, replace: bool = False, manifest: str = MANIFEST, kind: str = "bundle"
) -> Iterator[Path]:  # fmt: skip
    """Yield a temporary folder beside ``path`` to write a bundle into; on success rename it to ``path`` in one step.

    On any error or interruption the folder is removed, and an existing bundle at ``path`` is untouched.

    Args:
        path: of the bundle.
        replace: whether an existing one may be replaced.
        manifest: the file without which a folder is not replaced.
        kind: what such a folder is called, for errors: other exports are written in this way, too.

    Raises:
        UsageError: ``path`` exists and ``replace`` is not set, or it is something else.
        BundleError: the disk refuses a write.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not replace:
        raise UsageError(f"{path}: already exists; give another name, or --force to replace it")
    if path.exists() and not (path / manifest).is_file():
        raise UsageError(f"{path}: exists but is not a {kind}, so it is not replaced")
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        with _draft(path) as draft:
            yield draft
            with writable(path, BundleError):
                _sync(draft)
                if replace and path.exists():
                    with bundle_lock(path):
                        _exchange(draft, path)
                else:
                    draft.rename(path)
    finally:
        for parent in missing:  # the deepest first; folders that are not empty stay
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a future bundle; report in words what the disk refuses."""
    with ExitStack() as stack:
        with writable(path, BundleError):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = stack.enter_context(draft_folder(path.parent, f".{path.name}.", ".part"))
            draft.chmod(0o755)
        with writing(path, draft):
            yield draft


@contextmanager
def writing(path: Path, draft: Path) -> Iterator[None]:
    """Raise ``BundleError`` if the disk refuses a write while a bundle is made, there or in the temporary folder.

    Args:
        path: of the bundle.
        draft: the folder in which it is made.
    """
    try:
        yield
    except OSError as error:
        files = [Path(os.fsdecode(file)) for file in (error.filename, error.filename2) if file is not None]
        where = str(path)
        if not files:  # a full disk names no file
            temporary = Path(tempfile.gettempdir())
            if _free_bytes(temporary) < _free_bytes(draft):
                where = f"{temporary} (set TMPDIR)"
        elif not any(file.is_relative_to(draft) for file in files):
            raise
        raise BundleError(f"{where}: cannot be written ({reason(error)})") from error


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


@contextmanager
def bundle_lock(path: Path) -> Iterator[None]:
    """Hold a bundle's lock: wait for other processes that change it, and keep them out. Raises ``BundleError``."""
    with writable(path, BundleError), locked(path / LOCK, wait=True):
        yield


def copy_bundle(source: Path, target: Path) -> Bundle:
    """Copy a bundle atomically, check the copy, and return it.

    Raises ``UsageError`` if ``target`` exists, ``BundleError``.
    """
    ours = _ours(source, _read_manifest(source))

    def left_out(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(".") or name == "__pycache__"} | ours(folder, names)

    with new_bundle(target) as draft:
        with writable(target, BundleError):
            shutil.copytree(source, draft, dirs_exist_ok=True, ignore=left_out)
        try:
            copied = read_bundle(draft)
        except BundleError:
            raise BundleError(f"{source}: changed while it was being copied: run again") from None
    return replace(copied, path=target)


def _ours(path: Path, manifest: Manifest) -> Callable[[str, list[str]], set[str]]:
    """Return a filter of the links in a bundle's folder that are not copied: those that its manifest does not name.

    They may lead to anything on this machine, or to a folder above.
    """
    files = {info.file for graphs in manifest.variants.values() for info in graphs.values()}
    named = {path / name for name in (MANIFEST, CLASSES, *manifest.variants, *files)}

    def others(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if (Path(folder) / name).is_symlink() and Path(folder) / name not in named}

    return others


def copied_bundle(source: Bundle, target: Path) -> Bundle:
    """Return a copy of a bundle: an existing one at ``target``, with all that was added to it, or a new one.

    Raises ``UsageError`` if ``target`` exists and is not a copy, ``BundleError``.
    """
    if not target.exists():
        return copy_bundle(source.path, target)
    if not (target / MANIFEST).is_file() or _origin(_read_manifest(target)) != _origin(source.manifest):
        raise UsageError(f"{target}: already exists and is not a copy of {source.path}; give another name")
    return read_bundle(target)


def _origin(manifest: Manifest) -> tuple[Any, ...]:
    """Return the parts of a manifest that calibration and tuning do not change."""
    return manifest.model, manifest.provenance, manifest.classes_sha256, manifest.variants.get(VARIANT_PREFERENCE[0])


def update_bundle(
    path: Path, change: Callable[[Manifest], Manifest], variant: str | None = None, folder: Path | None = None
) -> Bundle:
    """Change a bundle's manifest and optionally add or replace one variant; the bundle is valid at every moment.

    Args:
        path: the bundle.
        change: makes the new manifest from the present one, while no other process can write the bundle.
        variant: name of the variant that ``folder`` holds.
        folder: holds its graphs, on the same disk; it is moved into the bundle.

    Returns:
        The bundle, read back. Raises ``BundleError``.
    """
    path = path.resolve()
    _read_manifest(path)  # a folder without a manifest gets no lock file
    with bundle_lock(path):
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
    with atomic_write(folder / MANIFEST) as file:
        file.write(encode_manifest(manifest))


def _link(source: str, target: str) -> None:
    """Make a hard link to a file, or a copy if the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        with suppress(FileNotFoundError):  # a build in another process has removed it
            shutil.copy2(source, target)


EXCHANGE = 2
"""RENAME_EXCHANGE of Linux."""
CURRENT_FOLDER = -100
"""AT_FDCWD of Linux."""


def _exchange(new: Path, old: Path) -> None:
    """Replace a folder by another, in one step if the system can; after an error one of the two is in place."""
    if _swapped(new, old):
        return  # the old folder is now the draft, which is removed
    aside = new.with_suffix(".old")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; return whether the system and the disk can do that."""
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


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content = decode_text(read_own(path))
    except UnicodeError as error:
        raise BundleError(f"{path}: damaged or not a manifest ({error})") from None
    except OSError:
        raise BundleError(f"{path}: missing or unreadable: {folder} is not a bundle") from None
    try:
        version = msgspec.json.decode(content, type=_Versioned).format_version
        if version not in READABLE:
            raise BundleError(
                f"{path}: format version {version}, but this release reads {READABLE[0]} to {READABLE[-1]}: "
                + ("update adafocus-edge" if version > FORMAT_VERSION else "export it again")
            )
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:  # a ValidationError is a DecodeError
        raise BundleError(f"{path}: damaged or not a manifest ({error})") from None


class _Versioned(msgspec.Struct):
    format_version: int


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Check that every file exists, in the folder of its own variant."""
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
        raise BundleError(
            f"{folder / MANIFEST}: uses preprocessing that this version does not support: update adafocus-edge"
        )
    for name, sets in manifest.thresholds.items():
        if any(len(one.values) != manifest.model.segments for one in sets):
            raise BundleError(f"{folder / MANIFEST}: thresholds {name!r} do not have one value per frame of a clip")
    if not manifest.variants:
        raise BundleError(f"{folder / MANIFEST}: it lists no variant")
    for variant, graphs in manifest.variants.items():
        missing = [graph for graph in GRAPHS if graph not in graphs]
        unknown = [graph for graph in graphs if graph not in (*GRAPHS, STEP_GRAPH)]
        if missing or unknown:
            named = f"no graph {missing[0]!r}" if missing else f"an unknown graph {unknown[0]!r}"
            raise BundleError(f"{folder / MANIFEST}: variant {variant!r} has {named}")
        for graph, info in graphs.items():
            for kind, expected, actual in zip(
                ("inputs", "outputs"), contract(manifest.model, graph), (info.inputs, info.outputs), strict=True
            ):
                if expected != actual:
                    raise BundleError(
                        f"{folder / MANIFEST}: the {kind} of {variant}/{graph} do not fit the model: "
                        f"found {describe_tensors(actual)}, expected {describe_tensors(expected)}"
                    )


def describe_tensors(tensors: tuple[TensorSpec, ...]) -> str:
    """Return tensors as ``name type[shape], ...``."""
    return ", ".join(f"{t.name} {t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors)
