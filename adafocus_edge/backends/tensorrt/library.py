"""TensorRT 10, TensorRT 11 and TensorRT-RTX: three libraries, one Python API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from adafocus_edge.errors import BackendError, UsageError

if TYPE_CHECKING:
    from adafocus_edge.model.spec import Gpu

MODULES = {
    "tensorrt": ("tensorrt",),
    # The module of the package tensorrt-rtx, and that of the wheels it consists of.
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Import names by library, in the order in which ``auto`` tries them."""
INSTALL = {
    "tensorrt": "pip install 'adafocus-edge[tensorrt]' (on a Jetson it is part of JetPack)",
    "tensorrt-rtx": "pip install 'adafocus-edge[tensorrt-rtx]'",
}
RTX_RUNS_ON = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""Compute capabilities that TensorRT-RTX supports; for others it may build engines, but refuses to load them."""
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


_LOGGERS: dict[str, Any] = {}


@dataclass(frozen=True)
class Library:
    """An installed TensorRT library.

    Attributes:
        name: one of :data:`MODULES`.
        version: such as ``10.13.3.9``.
        module: its Python API.
    """

    name: str
    version: str
    module: Any

    @property
    def title(self) -> str:
        """Its name and version as people write them."""
        return f"{NAMES[self.name]} {self.version}"

    def gpu_obstacle(self, gpu: Gpu) -> str | None:
        """Return why this library cannot run on a GPU and what can, or None if it should."""
        if self.name != "tensorrt-rtx" or gpu.sm in RTX_RUNS_ON:
            return None
        return (
            f"{self.title} does not run on this GPU ({gpu.name}, {gpu.sm}), only on {', '.join(RTX_RUNS_ON)}: "
            "use --backend onnxruntime-cuda, or install TensorRT"
        )

    def logger(self) -> Any:
        """Return this library's logger, which stores errors (:func:`pop_first_error`); there is one per process.

        TensorRT keeps the first logger that it is given.
        """
        if self.module.__name__ in _LOGGERS:
            return _LOGGERS[self.module.__name__]
        trt = self.module
        serious = (trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR)

        class Keeper(trt.ILogger):  # type: ignore[misc, name-defined]
            """Stores errors and drops everything else."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, text: str) -> None:
                if severity in serious:
                    self.errors.append(" ".join(text.split()))

        return _LOGGERS.setdefault(self.module.__name__, Keeper())


def find_library(name: str = "auto") -> Library:
    """Import a TensorRT library.

    Args:
        name: one of :data:`MODULES`, or ``auto`` for the first that is installed.

    Raises:
        UsageError: an unknown name.
        BackendError: it is not installed or cannot be loaded; the error says what to install.
    """
    if name != "auto" and name not in MODULES:
        raise UsageError(f"--library {name}: expected one of auto, {', '.join(MODULES)}")
    wanted = list(MODULES) if name == "auto" else [name]
    broken = ""
    for library in wanted:
        for module in MODULES[library]:
            try:
                found = import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module:
                    broken = f"{module} cannot be loaded ({error})"
                continue
            except (ImportError, OSError, RuntimeError) as error:  # installed, but its libraries do not load
                broken = f"{module} cannot be loaded ({' '.join(str(error).split())})"
                continue
            if not hasattr(found, "Builder"):  # an empty folder of that name is a module as well
                continue
            return Library(library, str(found.__version__), found)
    fixes = "; or ".join(INSTALL[library] for library in wanted)
    raise BackendError(f"{broken or NAMES.get(name, 'TensorRT') + ' is not installed'}: {fixes}")


def pop_first_error(logger: Any) -> str:
    """Return the first error that a logger has stored, and clear them all."""
    errors, logger.errors = logger.errors, []
    return errors[0] if errors else "it gives no reason"


@contextmanager
def wrap_errors(logger: Any, what: str) -> Iterator[None]:
    """Convert an exception of the library to a ``BackendError`` with the first error in its log."""
    logger.errors.clear()
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        reason = pop_first_error(logger) if logger.errors else " ".join(str(error).split())
        raise BackendError(f"{what}: {reason}") from None
