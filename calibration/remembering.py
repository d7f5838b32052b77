"""Sessions that compute what they have computed before only once, and combinations of graphs that share sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.backends.base import CPU_BACKEND, Session
from adafocus_edge.backends.loaded import CPU_BATCH, LoadedModel, check_contract
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.bundle.variants import EXACT_INT8
from adafocus_edge.model.spec import GRAPHS
from calibration.samples import WrappedSession

REMEMBERED = ("glancer", "policy", "focuser")
"""Graphs whose rows are remembered: those that cost much and get the same rows again where only a later graph changes.
Their rows do not depend on the rest of a batch."""
MAX_BYTES = 160_000_000
"""Size of what one session remembers; rows beyond that are computed each time."""


class RememberingSession(WrappedSession):
    """A session that computes equal rows of its inputs once, as long as there is room for the results.

    A row that is computed in a smaller batch than without this may differ in its last bits. Several threads may run it
    at once.

    Args:
        session: of a graph in which each row of the outputs depends on the same row of the inputs only.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._rows: dict[bytes, tuple[NDArray[Any], ...]] = {}
        self._bytes = 0
        self._counting = Lock()

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph on those rows whose results are not remembered."""
        given = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        keys = [_digest(row) for row in zip(*given.values(), strict=True)]
        there = {key: self._rows[key] for key in keys if key in self._rows}
        missing = {key: place for place, key in enumerate(keys) if key not in there}
        names = [output.name for output in self.outputs]
        new: dict[bytes, tuple[NDArray[Any], ...]] = {}
        if missing:
            places = list(missing.values())
            made = super().run({name: value[places] for name, value in given.items()})
            new = {key: tuple(made[name][row] for name in names) for row, key in enumerate(missing)}
        rows = [new[key] if key in new else there[key] for key in keys]
        for key, row in new.items():
            size = sum(value.nbytes for value in row)
            with self._counting:
                if key not in self._rows and self._bytes + size <= MAX_BYTES:
                    self._bytes += size
                    self._rows[key] = tuple(value.copy() for value in row)
        return {name: np.stack([row[place] for row in rows]) for place, name in enumerate(names)}

    def close(self) -> None:
        """Forget everything and close the session."""
        self._rows.clear()
        super().close()


def _digest(row: tuple[NDArray[Any], ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for value in row:
        digest.update(value.data)
    return digest.digest()


def remembering(model: LoadedModel, batch: int | None = None) -> LoadedModel:
    """Return a model on the host that computes equal rows of :data:`REMEMBERED` once; it forgets when it is freed.

    Args:
        model: the model.
        batch: frames of a clip at a time; None for as many as before.
    """
    glancer, policy, focuser = (RememberingSession(getattr(model, graph)) for graph in REMEMBERED)
    return replace(model, glancer=glancer, policy=policy, focuser=focuser, batch=batch or model.batch)


def forgetful(model: LoadedModel) -> LoadedModel:
    """Return the model that :func:`remembering` was given, to be timed."""
    glancer, policy, focuser = (_wrapped(getattr(model, graph)) for graph in REMEMBERED)
    return replace(model, glancer=glancer, policy=policy, focuser=focuser)


def _wrapped(session: Session) -> Session:
    return session.wrapped if isinstance(session, RememberingSession) else session


class Combinations:
    """Combines graphs of one model; a graph that is in several combinations is opened once.

    Args:
        reference: the float model, which has every graph that a combination does not name.
        threads: CPU threads, or None for all cores.
        batch: frames of a clip at a time.
    """

    def __init__(self, reference: LoadedModel, threads: int | None, batch: int = CPU_BATCH) -> None:
        self._reference, self._threads, self._batch = reference, threads, batch
        self._opened: dict[tuple[Path, bool], Session] = {}

    def model(self, paths: Mapping[str, Path], variant: str) -> LoadedModel:
        """Return a model of the given graphs, and the float model's for those not given. Do not close it.

        Raises ``BackendError``.
        """
        sessions = {
            graph: self._session(graph, paths[graph], variant) if graph in paths else getattr(self._reference, graph)
            for graph in GRAPHS
        }
        return LoadedModel.of(self._reference.spec, sessions, CPU_BACKEND, variant, self._batch)

    def drop(self, paths: Collection[Path] | None = None) -> None:
        """Close graphs that will not be used again: these, or all."""
        for key in [key for key in self._opened if paths is None or key[0] in paths]:
            self._opened.pop(key).close()

    def _session(self, graph: str, path: Path, variant: str) -> Session:
        key = path, variant in EXACT_INT8
        if key not in self._opened:
            session: Session = OrtSession(path, self._threads, exact_int8=key[1])
            self._opened[key] = RememberingSession(session) if graph in REMEMBERED else session
            check_contract(session, self._reference.spec, graph, path)
        return self._opened[key]
