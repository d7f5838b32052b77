"""Forked runs are processes of their own: status, streams, folder, variables; and what cannot be forked is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.prefork import Prefork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux only")
SEEN = """
import atexit, json, os, sys
atexit.register(print, "at exit")
print(json.dumps([os.getcwd(), sys.argv[1:], os.environ.get("TEST_WORD"), os.getpid(), "json.tool" in sys.modules]))
print("an error", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def server():
    server = Prefork(["json.tool", "no.such.module"])
    yield server
    server.close()


def run(server: Prefork, folder: Path, code: str, *arguments: str, timeout_s: float = 60):
    (folder / "script_to_run.py").write_text(code)
    environment = {**os.environ, "TEST_WORD": folder.name}
    return server.run("script_to_run", list(arguments), folder, environment, timeout_s)


def test_a_run_is_a_process_of_its_own(server, tmp_path):
    import json

    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        done = run(server, tmp_path / name, SEEN, "a b", "--c")
        first, last = done.stdout.splitlines()
        cwd, arguments, word, process, imported = json.loads(first)
        assert (done.returncode, last, done.stderr) == (3, "at exit", "an error\n")
        assert (cwd, arguments, word, imported) == (str(tmp_path / name), ["a b", "--c"], name, True)
        found.append(process)
    assert len({*found, os.getpid()}) == 3


def test_signals_errors_and_endless_runs_are_seen(server, tmp_path):
    assert run(server, tmp_path, "import os; os.kill(os.getpid(), 9)").returncode == -9
    done = run(server, tmp_path, "raise ValueError('why')")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: why\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run(server, tmp_path, "import time; time.sleep(60)", timeout_s=0.2)
    assert run(server, tmp_path, "print('next')").stdout == "next\n"  # the server lives on


def test_variables_that_libraries_may_have_read_are_not_changed_by_a_fork(server):
    assert server.suits({**os.environ, "TMPDIR": "/tmp", "TEST_WORD": "a"})
    assert not server.suits({**os.environ, "OMP_NUM_THREADS": "17"})
    assert not server.suits({**os.environ, "PYTHONPATH": "/nowhere"})
