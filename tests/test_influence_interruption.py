"""Signals: where Python itself would lose them."""

import gc
import os
import signal
import subprocess
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


STUCK = """
import hashlib, sys
from influence import interruption
interruption.PATIENCE = 0.2
sys.argv = ["accomplice", "sweep", "a b"]
with interruption.end_in_good_order({grace}, lambda line: print("told", flush=True)):
    print("begun", flush=True)
    # Many minutes in which the main thread runs no instructions of Python, and so no handlers.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


@pytest.mark.parametrize(("grace", "signals"), [(0.2, 1), (600, 2)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_main_thread_that_hears_nothing_is_ended_all_the_same(grace, signals, number):
    """In time after one signal, at once after two equal ones."""
    code = STUCK.format(grace=grace)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.readline() == "told\n"
        for _ in range(signals - 1):
            process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "To go on: accomplice sweep 'a b'" in said
