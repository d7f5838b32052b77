"""Errors that reach a user: one line each, naming what is wrong and what to do about it."""

from __future__ import annotations

import errno

SHORTAGES = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


class AdaFocusError(Exception):
    """Base of every error that is told in one line. ``exit_code`` is what the command line then ends with."""

    exit_code = 1


class UsageError(AdaFocusError):
    """What was asked for contradicts itself or lacks something: exit code 2."""

    exit_code = 2


class CheckpointError(AdaFocusError):
    """A checkpoint that cannot be read, or holds another model than expected."""


class BundleError(AdaFocusError):
    """A bundle that is missing, damaged, of another version, or whose graphs do not fit together."""


class SourceError(AdaFocusError):
    """A video, a folder of frames, a camera or a stream that cannot be read."""


class ShortageError(AdaFocusError):
    """This machine is short of memory, threads or open files, which is no fault of what was to be read."""

    @classmethod
    def check(cls, name: str, error: BaseException) -> None:
        """Raise it, with the name of what was to be read, if that is what an error says."""
        if getattr(error, "errno", None) in SHORTAGES:
            why = getattr(error, "strerror", None) or error
            raise cls(
                f"{name}: cannot be read: this machine is short of memory, threads or open files ({why})"
            ) from None


class DataError(AdaFocusError):
    """Labelled clips that cannot be used: a bad line of a list, an unknown class, an empty split."""


class TrainingError(AdaFocusError):
    """Training that cannot go on."""


class HasAnEndError(SourceError):
    """An address that was taken for a live stream is that of a file."""


class FrameError(AdaFocusError, ValueError):
    """A picture or a model frame of the wrong type, shape or kind: a model would misread it."""


class BackendError(AdaFocusError):
    """A backend that cannot run here, or failed while it ran."""


class BusyError(BackendError):
    """A model that another thread is using."""


class ExportError(AdaFocusError):
    """An export whose graphs do not agree with the model they were made from."""


class BuildError(AdaFocusError):
    """A graph that TensorRT cannot turn into an engine."""


class MissingExtraError(AdaFocusError):
    """A verb that needs packages which are not installed."""

    def __init__(self, what: str, extra: str, missing: str) -> None:
        super().__init__(
            f"{what} needs the package {missing!r}, which is not installed: pip install 'adafocus-edge[{extra}]'"
        )
