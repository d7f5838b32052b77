"""Parts of tests in processes of their own."""

import os
import resource

import pytest

from tests.support.alone import run_alone


def process_with_few_files(most: int) -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
    return os.getpid()


def test_limits_are_lowered_in_processes_of_their_own_only():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert run_alone(process_with_few_files, 100) != os.getpid()
    with pytest.raises(ValueError, match="limit"):
        run_alone(process_with_few_files, -5)
    with pytest.raises(AssertionError, match="would limit all libraries"):
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
