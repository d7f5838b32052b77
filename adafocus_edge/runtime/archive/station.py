"""What a process of an archive run does: load the model once, and classify the files that it is given, in threads."""

from __future__ import annotations

import errno
import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.backends.registry import load_model, model_threads
from adafocus_edge.bundle.store import check_graph_files, open_bundle
from adafocus_edge.errors import SHORTAGES, AdaFocusError, BackendError, MissingExtraError, ShortageError
from adafocus_edge.media.remote import fetched
from adafocus_edge.runtime.archive.shipped import unpacked
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.system.addresses import conceal
from adafocus_edge.system.cpu import limit_cores_of_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adafocus_edge.backends.base import ConvSearch
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.exits import ExitThresholds
    from adafocus_edge.runtime.archive.shipped import Shipped
    from adafocus_edge.runtime.settings import Schedule

Row = dict[str, Any]
"""The JSON object of a result, or of a source that failed."""


@dataclass(frozen=True)
class ArchiveJob:
    """What every process of a run needs to know.

    Attributes:
        bundle: its files, for processes that do not find its folder.
        variant: to run.
        backend: to run it on.
        conv_search: of ONNX Runtime on a GPU.
        device: of OpenVINO; None for its CPU.
        schedule: of the model.
        exits: thresholds, or None.
        top_k: classes per result.
        logits: whether steps list their logits.
        threads: files that a process classifies at a time, on one core each.
    """

    bundle: Shipped
    variant: str
    backend: str
    conv_search: ConvSearch
    device: str | None
    schedule: Schedule
    exits: ExitThresholds | None
    top_k: int
    logits: bool
    threads: int


class Station:
    """A model in a process, for :attr:`ArchiveJob.threads` threads at a time."""

    def __init__(self, job: ArchiveJob) -> None:
        self._job = job
        self._own = threading.local()
        self._turn = threading.Lock()

    def prepare(self, files: dict[str, bytes] | None = None) -> str:
        """Load the model, and return the backend that runs it. Raises ``AdaFocusError``.

        Args:
            files: of the bundle, for a machine that does not have its folder.
        """
        job = self._job
        with unpacked(job.bundle, files) as folder:
            self._bundle = open_bundle(folder)
            check_graph_files(self._bundle, job.variant)
            threads = model_threads(job.backend, 1, job.threads)
            self._model = load_model(
                self._bundle, job.variant, job.backend, threads, conv_search=job.conv_search, device=job.device
            )
        self._classifier().prepare()
        return self._model.backend

    def classify(self, sources: Sequence[Source]) -> list[Row]:
        """Return a row for each source, in their order.

        Raises ``BackendError``, in one line without secrets, if this process, its machine or its device has failed:
        other files would fail here, too, and these may be intact.
        """
        return [self._row(source) for source in sources]

    def _row(self, source: Source) -> Row:
        read = source.address
        try:
            if (missing := source.missing()) is not None:
                raise missing
            classifier = self._classifier()
            with fetched(source) as local, nullcontext() if classifier.reads_side_by_side else self._turn:
                read = local.address
                result, _ = classifier.classify(replace(local, live=False))
                return replace(result, source=source.name).to_json(logits=self._job.logits)
        except Exception as error:  # a damaged file may raise anything; the others must still run
            text = str(error)
            if not isinstance(error, AdaFocusError):
                text = f"{source.name}: cannot be read (unexpected {type(error).__name__}: {error})"
            row = failed_row(source, _named(text, read, source))
            if is_of_machine(error):
                raise BackendError(row["error"]) from None
            return row

    def _classifier(self) -> Classifier:
        """Return this thread's classifier."""
        if not hasattr(self._own, "classifier"):
            own = self._own.classifier = Classifier(
                self._model, self._bundle.classes, top_k=self._job.top_k, schedule=self._job.schedule,
                exits=self._job.exits, turn=self._turn if self._model.on_device else None,
            )  # fmt: skip
            if own.reads_side_by_side:
                limit_cores_of_thread(1)
        found: Classifier = self._own.classifier
        return found


def failed_row(source: Source, text: str) -> Row:
    """Return the row of a source that failed. Its name, which is in the row anyway, stays whole in the error."""
    start = source.name if text.startswith(source.name) else ""
    return {"source": source.name, "error": start + conceal(text.removeprefix(start), source.address)}


def is_of_machine(error: Exception) -> bool:
    """Whether an error comes from this process, its machine or its device rather than from the file."""
    kinds = (BackendError, ShortageError, MissingExtraError, MemoryError)
    return isinstance(error, kinds) or getattr(error, "errno", None) in (*SHORTAGES, errno.ENOSPC)


def _named(text: str, read: str, source: Source) -> str:
    """Return a message with the source's name in place of the temporary copy that was read."""
    if read == source.address:
        return text
    return text.replace(read, source.name).replace(Path(read).name, source.name)
