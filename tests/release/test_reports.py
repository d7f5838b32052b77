"""What a run of the tests tells of a process that crashed."""

import signal
import subprocess
import sys

from tests.conftest import crash_lines

CRASH = """
import ctypes, faulthandler, sys, threading
faulthandler.enable(open(sys.argv[1], "w"))
waiting = threading.Event()
threading.Thread(target=waiting.wait, daemon=True).start()

def reads_nothing():
    ctypes.string_at(0)

reads_nothing()
"""


def test_a_crash_is_told_with_the_stack_of_its_thread(tmp_path):
    stacks = tmp_path / "gw0"
    assert crash_lines(stacks) == []
    done = subprocess.run([sys.executable, "-c", CRASH, stacks], check=False, timeout=60)
    assert done.returncode == -signal.SIGSEGV
    first, *stack = crash_lines(stacks)
    assert first == "Fatal Python error: Segmentation fault"
    assert "in reads_nothing" in stack[2]
    assert not any("in wait" in line for line in stack)
