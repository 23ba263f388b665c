"""Signals: where Python itself would lose them."""

import gc
import os
import signal
import sys
import time

import pytest

from influence.interruption import Interrupted, end_at_once, end_in_good_order


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_the_garbage_collection_is_not_lost(number):
    """Python drops what a callback of its garbage collector raises."""
    report = sys.unraisablehook

    def collecting(phase, info):
        gc.callbacks.remove(collecting)
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught, end_at_once():
        gc.callbacks.append(collecting)
        gc.collect()
        begin = time.monotonic()
        while time.monotonic() < begin + 10:
            pass
    assert caught.value.exit_code == 128 + number
    assert sys.unraisablehook is report


def test_other_exceptions_that_python_drops_are_reported_as_before(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: seen.append(what.exc_value))

    class Careless:
        def __del__(self):
            raise ValueError("dropped")

    with end_at_once():
        Careless()
        gc.collect()
    assert [str(error) for error in seen] == ["dropped"]


def test_the_end_of_the_grace_is_not_lost_either():
    def collecting(phase, info):
        gc.callbacks.remove(collecting)
        begin = time.monotonic()
        while time.monotonic() < begin + 10:
            pass  # until the grace is over

    with pytest.raises(Interrupted) as caught, end_in_good_order(0.05, lambda line: None) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        gc.callbacks.append(collecting)
        gc.collect()
        begin = time.monotonic()
        while time.monotonic() < begin + 10:
            pass
    assert caught.value.exit_code == 143
