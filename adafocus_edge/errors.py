"""Errors for users: one line each that names the problem and the fix."""

from __future__ import annotations

import errno

SHORTAGES = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
"""Error numbers of a system that is short of memory, threads or open files."""


class AdaFocusError(Exception):
    """Base of all errors that are reported in one line. The command line then ends with ``exit_code``."""

    exit_code = 1


class UsageError(AdaFocusError):
    """Arguments that are missing, invalid or contradict each other: exit code 2."""

    exit_code = 2


class CheckpointError(AdaFocusError):
    """A checkpoint that cannot be read, or that holds a different model from the one expected."""


class BundleError(AdaFocusError):
    """A bundle that is missing, damaged or of another format version, or whose graphs do not fit together."""


class SourceError(AdaFocusError):
    """A video, a folder of frames, a camera or a stream that cannot be read."""


class ShortageError(AdaFocusError):
    """This machine is short of memory, threads or open files; the source itself may be intact."""

    @classmethod
    def check(cls, name: str, error: BaseException) -> None:
        """Raise this error if another error was caused by such a shortage.

        Args:
            name: the source that could not be read.
            error: the other error.
        """
        if getattr(error, "errno", None) in SHORTAGES:
            why = getattr(error, "strerror", None) or error
            raise cls(
                f"{name}: cannot be read: this machine is short of memory, threads or open files ({why})"
            ) from None


class DataError(AdaFocusError):
    """Labelled clips that cannot be used: a bad line of a list, an unknown class, an empty split."""


class TrainingError(AdaFocusError):
    """Training that cannot continue."""


class HasAnEndError(SourceError):
    """An address that looked like a live stream leads to a file."""


class FrameError(AdaFocusError, ValueError):
    """A picture or a model frame of the wrong type, shape or kind, which a model would misread."""


class BackendError(AdaFocusError):
    """A backend that cannot run on this machine, or that failed while it ran."""


class ServerLostError(BackendError):
    """A server of models that is gone or does not answer, or that has lost the states of streams."""


class BusyError(BackendError):
    """A model that another thread is using."""


class ExportError(AdaFocusError):
    """An export whose graphs do not agree with the model from which they were made."""


class BuildError(AdaFocusError):
    """A graph that TensorRT cannot turn into an engine."""


class MissingExtraError(AdaFocusError):
    """A command or an option needs packages that are not installed.

    Args:
        what: the command or option.
        extra: the extra of adafocus-edge that installs them.
        missing: the package that was not found.
    """

    def __init__(self, what: str, extra: str, missing: str) -> None:
        super().__init__(
            f"{what} needs the package {missing!r}, which is not installed: pip install 'adafocus-edge[{extra}]'"
        )
