"""A model that is ready to run: four sessions, and optionally a runner that keeps all tensors on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.backends.base import Program, ServerRunner, Session
from adafocus_edge.backends.device.runner import DeviceRunner, DeviceSession
from adafocus_edge.bundle.engines import PIXELS_GRAPH
from adafocus_edge.bundle.store import describe_tensors
from adafocus_edge.errors import BackendError
from adafocus_edge.model.spec import GRAPHS, ModelSpec, contract

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from adafocus_edge.backends.tensors import Device

CPU_BATCH = 4
"""Frames per call on a CPU: as fast as the whole clip at once (measured), and its activations stay in the caches."""


@dataclass(frozen=True)
class LoadedModel:
    """The four sessions of one variant on one backend; a context manager that closes them.

    Attributes:
        spec: the model's shapes and names.
        glancer: ``frame`` to ``feature_map`` and ``glance``.
        policy: ``feature_map`` and ``policy_state`` to ``origin``, ``action`` and ``policy_state_out``.
        focuser: ``frame`` and ``origin`` to ``focus``.
        classifier: ``glance``, ``focus`` and ``state`` to ``logits`` and ``state_out``.
        backend: its name, such as ``onnxruntime-cpu``.
        variant: its name, such as ``fp32``.
        batch: how many frames of a clip to pass to the glancer and the focuser per call.
        resident: runs the same graphs with all tensors on a device; None if only the four sessions exist.
        remote: runs whole steps and clips on a server, in place of the four sessions; None if they run here.
    """

    spec: ModelSpec
    glancer: Session
    policy: Session
    focuser: Session
    classifier: Session
    backend: str
    variant: str
    batch: int
    resident: DeviceRunner | None = None
    remote: ServerRunner | None = None

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        sessions: Mapping[str, Session],
        backend: str,
        variant: str,
        batch: int,
        resident: DeviceRunner | None = None,
    ) -> LoadedModel:
        """Return a model of sessions, given by the names of their graphs."""
        glancer, policy, focuser, classifier = (sessions[graph] for graph in GRAPHS)
        return cls(spec, glancer, policy, focuser, classifier, backend, variant, batch, resident)

    @property
    def on_device(self) -> bool:
        """Return whether tensors stay on a device between graphs."""
        return self.resident is not None

    def close(self) -> None:
        """Close the four sessions and the runner, even if closing one of them fails."""
        with ExitStack() as stack:
            if self.resident is not None:
                self.resident.release()
                stack.callback(self.resident.close)
            if self.remote is not None:
                stack.callback(self.remote.close)
            for graph in GRAPHS:
                stack.callback(getattr(self, graph).close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def on_device(
    spec: ModelSpec, programs: Mapping[str, Program], device: Device, *, backend: str, variant: str
) -> LoadedModel:
    """Return a model of programs on a device. It owns them: closing the model closes the programs and the device."""
    sessions = {graph: DeviceSession(programs[graph], device) for graph in GRAPHS}
    return LoadedModel.of(spec, sessions, backend, variant, spec.segments, DeviceRunner(spec, programs, device))


def open_programs(
    spec: ModelSpec,
    graphs: tuple[str, ...],
    opener: Callable[[str], Program],
    path_of: Callable[[str], Path],
    device: Device,
    *,
    backend: str,
    variant: str,
) -> LoadedModel:
    """Open programs on a device and return a model of them; if one fails, close all of them and the device.

    Args:
        spec: the model's shapes and names.
        graphs: to open: the four, and others that the loops use.
        opener: opens a graph by its name.
        path_of: returns a graph's file, for errors.
        device: where they run.
        backend: its name.
        variant: its name.

    Raises ``BackendError``.
    """
    with ExitStack() as opened:
        opened.callback(device.close)
        programs: dict[str, Program] = {}
        for graph in graphs:
            with device.use():
                program = opener(graph)
            opened.callback(program.close)
            if graph != PIXELS_GRAPH:
                check_contract(program, spec, graph, path_of(graph))
            programs[graph] = program
        opened.pop_all()
    return on_device(spec, programs, device, backend=backend, variant=variant)


def check_contract(graph_runner: Session | Program, spec: ModelSpec, graph: str, path: Path) -> None:
    """Check a graph's inputs and outputs against the model. Raises ``BackendError`` that names the graph's file."""
    sides = (graph_runner.inputs, graph_runner.outputs)
    for found, expected in zip(sides, contract(spec, graph), strict=True):
        if sorted(found, key=str) != sorted(expected, key=str):
            raise BackendError(
                f"{path}: graph signature mismatch: found {describe_tensors(found)}, "
                f"expected {describe_tensors(expected)}"
            )
