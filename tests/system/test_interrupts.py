"""Signals of a real process, whose handlers are those of the package."""

import os
import signal
import subprocess
import sys

import pytest

from adafocus_edge.system.interrupts import DeferredSignals, note_interrupts, stop_on_signals


def test_a_first_signal_asks_to_stop_and_a_second_one_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.05)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with DeferredSignals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deferred_signal_acts_when_it_is_checked_and_a_second_one_at_once():
    before = signal.getsignal(signal.SIGINT)
    deferred = DeferredSignals()
    with deferred:
        deferred.check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            deferred.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_a_library_swallows_is_noted():
    with pytest.raises(KeyboardInterrupt), note_interrupts() as check:
        check()
        with pytest.raises(KeyboardInterrupt):  # as a library may catch it
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_worker_leaves_ctrl_c_to_its_parent_and_ends_on_sigterm():
    code = (
        "import os, signal; from adafocus_edge.system.interrupts import leave_interrupts_to_parent as leave;"
        "signal.signal(signal.SIGTERM, lambda *_: print('caught', flush=True)); leave();"
        "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM);"
        "leave(reset_termination=True); os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "caught\n", "")
