"""Clips and batches that run at once: the same results in the same order as one after another."""

import logging
import threading
import time

import numpy as np
import pytest

from adafocus_edge.backends.loaded import CPU_BATCH
from calibration import int8
from calibration.compare import Comparison, run
from calibration.remembering import remembering
from calibration.workers import MAX_AT_ONCE, SERIAL, Workers


@pytest.mark.parametrize(
    ("threads", "at_once", "each"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (MAX_AT_ONCE * 4, MAX_AT_ONCE, 4)]
)
def test_threads_are_divided(threads, at_once, each):
    workers = Workers(threads)
    assert (workers.at_once, workers.threads_each) == (at_once, each)
    assert workers.batch * at_once <= CPU_BATCH


def test_results_are_in_the_order_of_the_items():
    def slow_if_first(item):
        time.sleep(0.1 * (item == 0))
        return item, threading.get_ident()

    items, idents = zip(*Workers(2).map(slow_if_first, range(6)), strict=True)
    assert items == tuple(range(6))
    assert threading.get_ident() not in idents
    _, idents = zip(*SERIAL.map(slow_if_first, range(3)), strict=True)
    assert set(idents) == {threading.get_ident()}


def test_few_items_are_begun_before_their_results_are_taken():
    begun = []
    results = Workers(2).map(begun.append, range(100))
    assert next(results) is None
    time.sleep(0.1)
    assert len(begun) <= 4
    results.close()
    time.sleep(0.1)
    assert len(begun) <= 4


def test_graphs_quantized_at_once_leave_the_log_as_it_was(caplog):
    """One that ends first must not restore what another found, nor take other threads' messages."""
    both_quiet, first_ended = threading.Barrier(2), threading.Event()

    def quantize(number):
        if number == 1:
            both_quiet.wait(10)
        with int8.quiet():
            logging.warning("the quantizer's, of thread %d", number)
            if number == 0:
                both_quiet.wait(10)
                time.sleep(0.1)
            else:
                first_ended.wait(10)
        first_ended.set()

    results = Workers(2).map(quantize, range(2))
    next(results)
    logging.getLogger("adafocus_edge").warning("ours")
    logging.warning("another thread's")
    assert list(results) == [None]
    logging.warning("after it")
    assert [one.getMessage() for one in caplog.records] == ["ours", "another thread's", "after it"]


def test_an_error_of_one_item_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(Workers(2).map(lambda item: 1 / item, [1, 2, 0, 3]))


def test_clips_at_once_give_the_same_run(model, fights):
    alone = run(model, fights)
    done = []
    together = run(remembering(model, batch=2), fights, progress=done.append, workers=Workers(2))
    assert np.array_equal(together.patches, alone.patches)
    assert np.allclose(together.logits, alone.logits, atol=1e-5)
    assert done == list(range(1, len(fights) + 1))
    compared = Comparison(remembering(model), fights, alone, workers=Workers(3), order=[3, 1, 0, 2])
    compared.advance()
    assert not compared.done
    difference = compared.difference()
    assert difference.logit_error_max <= 1e-5
    assert difference.action_agreement == 100.0
