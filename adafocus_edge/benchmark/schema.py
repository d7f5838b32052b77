"""The report of a benchmark as dataclasses, and as the JSON object of docs/reference/benchmark-report.md.

The fields are the keys of the JSON object, in its order. A field with a default is written only if it is set.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from adafocus_edge.benchmark.grid import Skipped
from adafocus_edge.benchmark.machine import Machine
from adafocus_edge.benchmark.stats import Summary
from adafocus_edge.errors import UsageError
from adafocus_edge.system.files import read_whole

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
"""The version of the report that this code writes and reads."""


@dataclass(frozen=True, kw_only=True)
class FailedClip:
    """A clip that cannot be read, and the error."""

    clip: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Data:
    """The clips that accuracies are measured on.

    Attributes:
        origin: where they were listed.
        clips: number of clips that can be read.
        chosen: hash of the names and labels of the chosen clips.
        failed: the chosen clips that cannot be read.
        reused: clips that a bundle's calibration has used, by bundle and part; see ``evidence.reused_clips``.
    """

    origin: str
    clips: int
    chosen: str
    failed: tuple[FailedClip, ...] | None = None
    reused: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class BundleReport:
    """A bundle, and the model in it."""

    path: str
    glancer: str
    focuser: str
    patch_size: int
    frame_size: int
    segments: int
    classes: int
    checkpoint_sha256: str


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """The measurements of one setting: times in milliseconds, accuracies in percent, memory in megabytes.

    Attributes:
        id: number in the report, from 1.
        key: see :attr:`adafocus_edge.benchmark.grid.Row.key`.
        exit: ``SET/ORDER``, or None for all steps.
        model_ms: time in the glimpse loop.
        whole_ms: time from opening the file to the result; None for several streams.
        step_ms: time of a glimpse; None for the clip schedule.
        size_mb: size of the variant's graphs; None for a peer.
        gflops_per_step: multiply-adds in units of 1e9.
        mean_steps: mean number of glimpses, over all clips where accuracy was measured.
        timed_steps: with early exit, their mean number in the timed runs.
        parts_ms: the parts of ``whole_ms``, by name; None where they were not timed.
        parts_over_whole: median ratio of the sum of the parts to the whole time.
        samples_ms: the single times in the glimpse loop.
        top1: and the fields up to ``top1_random_exit``: None where accuracy was not measured.
        same_time_as: ids of the rows whose times do not differ significantly.
        on_front: whether no other row is both as fast and more accurate, or as accurate and faster.
    """

    id: int
    key: str
    bundle: str
    patch_size: int
    backend: str
    variant: str
    schedule: Literal["clip", "stream"]
    exit: str | None
    segments: int
    streams: int
    threads: int
    peer: bool
    model_ms: Summary
    whole_ms: Summary | None
    step_ms: Summary | None
    clips_per_s: float
    size_mb: float | None
    load_ms: float | None = None
    cold_start_ms: float
    host_mb: float
    device_mb: float | None
    joules_per_clip: float | None
    gflops_per_step: float | None = None
    mean_steps: float
    timed_steps: float | None = None
    parts_ms: dict[str, Summary] | None
    parts_over_whole: float | None
    samples_ms: tuple[float, ...] | None = None
    gflops_per_clip: float
    top1: float | None = None
    top1_interval_95: tuple[float, float] | None = None
    mAP: float | None = None  # noqa: N815 - the key in JSON
    per_step_top1: tuple[float, ...] | None = None
    top1_random_exit: float | None = None
    same_time_as: tuple[int, ...]
    on_front: bool
    on_whole_front: bool
    on_gflops_front: bool

    @property
    def accuracy(self) -> float:
        """Top-1 in percent of a row whose accuracy was measured. Raises ``ValueError`` for another row."""
        if self.top1 is None:
            raise ValueError(f"{self.key}: its accuracy was not measured")
        return self.top1

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of :attr:`accuracy`; raises likewise."""
        if self.top1_interval_95 is None:
            raise ValueError(f"{self.key}: its accuracy was not measured")
        return self.top1_interval_95


@dataclass(frozen=True, kw_only=True)
class Report:
    """A benchmark's report.

    Attributes:
        schema: :data:`SCHEMA`.
        created: when, in UTC.
        version: version of adafocus-edge.
        data: the clips; None for synthetic frames.
        rounds: number of rounds.
        warm_up: runs of each row before the first round.
        random_weights: whether the PyTorch peers had random weights.
        yardstick_ms: time of the same work in every round, which shows the machine's own noise.
        energy_of: the device whose energy was measured; None without a sensor.
        findings: which settings pay and which do not, in words.
        compared: the result of ``--compare``.
    """

    schema: int
    created: str | None = None
    version: str | None = None
    machine: Machine
    data: Data | None
    rounds: int
    warm_up: int | None = None
    seed: int | None = None
    random_weights: bool | None = None
    yardstick_ms: Summary | None
    energy_of: str | None
    bundles: dict[str, BundleReport] | None = None
    rows: tuple[RowReport, ...]
    skipped: tuple[Skipped, ...]
    findings: tuple[str, ...]
    compared: dict[str, Any] | None = None


def to_json(value: Any) -> Any:
    """Return a report or a part of it as JSON values."""
    if is_dataclass(value):
        named = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: to_json(one) for field, one in named if one is not None or field.default is MISSING}
    if isinstance(value, dict):
        return {name: to_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    return value


def read_report(path: Path) -> Report:
    """Read a report. Raises ``UsageError`` if it cannot be read, is not a report, or has another schema."""
    try:
        found = json.loads(read_whole(path))
        if found["schema"] != SCHEMA:
            raise UsageError(f"{path}: is a report of schema {found['schema']}, but this version reads {SCHEMA}")
        return msgspec.convert(found, Report)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: is not a report of `adafocus-edge benchmark` ({error})") from None
