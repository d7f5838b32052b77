"""Runs a part of a test in a process of its own: what would change the tests' process for every library in it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

TIMEOUT_S = 300


def run_alone(function: Callable[Arguments, Result], *arguments: Arguments.args, **more: Arguments.kwargs) -> Result:
    """Return or raise what a function of a test module does, in a new process.

    Args:
        function: at the top level of its module.
        arguments: for it.
        more: for it, by name.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **more).result(TIMEOUT_S)


def refuse_limits() -> None:
    """Let nothing lower the limits of this process.

    Threads of other libraries run beside a test: with fewer files, or smaller ones, they have crashed later on.
    """
    import resource

    def refuse(*_: object) -> None:
        raise AssertionError("this would limit all libraries in the tests' process: see tests/support/alone.py")

    resource.setrlimit = refuse  # type: ignore[assignment]
