"""Keep a benchmark's measurements on disk, so that an interrupted run resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.benchmark.timing import Timing
from adafocus_edge.errors import AdaFocusError
from adafocus_edge.system.files import write_file, write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINGERPRINT = "what.json"
LINES = "rounds.jsonl"


@dataclass(frozen=True)
class Process:
    """The facts of a process that ran a loaded model.

    Attributes:
        cold_start_ms: time from its start to its first result.
        load_ms: time to read and check the bundle and load the model.
        first_ms: time from then to the first result.
        gflops_per_step: multiply-adds per step, in units of 1e9.
        energy_of: the device whose joules it measured; empty without an energy sensor.
        host_mb: peak main memory, in megabytes.
        device_mb: GPU memory, in megabytes, or None without a GPU.
    """

    cold_start_ms: float
    load_ms: float
    first_ms: float
    gflops_per_step: float
    energy_of: str
    host_mb: float
    device_mb: float | None


class State:
    """Measurements by row and round, logits by name, and the facts of each process.

    Args:
        folder: folder to keep them in; None for memory only. Measurements of a different run in it are removed.
        fingerprint: everything that the measurements depend on, as text.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._folder = folder
        self.whole: dict[str, dict[int, Timing]] = {}
        """Timings of whole runs, by row and round."""
        self.parts: dict[str, dict[int, Timing]] = {}
        """Timings of runs in parts, by row and round."""
        self.yardstick: dict[str, float] = {}
        """Milliseconds of the same work in each round, by block and round."""
        self.processes: dict[str, Process] = {}
        """Facts of each process, by loading."""
        self._logits: dict[str, NDArray[np.float32]] = {}
        if folder is None:
            return
        try:
            before = (folder / FINGERPRINT).read_text(encoding="utf-8")
        except OSError:
            before = ""
        if before != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(folder / FINGERPRINT, fingerprint)
        self._read()

    @property
    def resumed(self) -> bool:
        """Whether it holds measurements of an earlier run."""
        return bool(self.whole or self._logits)

    def logits(self, name: str) -> NDArray[np.float32] | None:
        """Return the logits kept under a name, or None."""
        return self._logits.get(name)

    def keep_logits(self, name: str, logits: NDArray[np.float32]) -> None:
        """Keep logits float32 [N, T, C] under a name."""
        self._logits[name] = logits
        if self._folder is not None:
            import io

            content = io.BytesIO()
            np.savez(content, name=np.array(name), logits=logits)
            file = hashlib.sha256(name.encode()).hexdigest()[:16]
            write_file(self._folder / f"{file}.npz", content.getvalue())

    def keep(self, kind: str, name: str, round_: int, value: Any) -> None:
        """Keep one measurement: ``whole`` or ``parts`` of a row, ``yardstick`` of a block, ``process`` of a loading."""
        self._take(kind, name, round_, value)
        if self._folder is None:
            return
        plain = asdict(value) if isinstance(value, (Timing, Process)) else value
        try:
            with (self._folder / LINES).open("a", encoding="utf-8") as file:
                file.write(json.dumps([kind, name, round_, plain]) + "\n")
        except OSError as error:
            raise AdaFocusError(f"{self._folder / LINES}: cannot be written ({error.strerror})") from None

    def _take(self, kind: str, name: str, round_: int, value: Any) -> None:
        if kind == "process":
            self.processes[name] = value if isinstance(value, Process) else Process(**value)
        elif kind == "yardstick":
            self.yardstick[f"{name} {round_}"] = value
        else:
            timing = value if isinstance(value, Timing) else Timing(**{**value, "step_ms": tuple(value["step_ms"])})
            (self.whole if kind == "whole" else self.parts).setdefault(name, {})[round_] = timing

    def _read(self) -> None:
        assert self._folder is not None
        for path in self._folder.glob("*.npz"):
            try:
                with np.load(path) as found:
                    self._logits[str(found["name"])] = found["logits"]
            except (OSError, ValueError, KeyError):
                path.unlink(missing_ok=True)
        lines = self._folder / LINES
        if not lines.is_file():
            return
        whole = []
        for line in lines.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                self._take(*json.loads(line))
            except (ValueError, TypeError, KeyError):
                break  # the incomplete last line of a killed run
            whole.append(line)
        write_text(lines, "".join(whole))
