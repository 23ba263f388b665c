"""What happens on Ctrl-C and when a machine is taken away (SIGINT and SIGTERM)."""

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2.0
"""Seconds that a block has to be left in, before the process is ended under it."""
AGAIN = 0.01
"""Seconds after which a signal is told again that Python dropped."""


class Interrupted(BaseException):
    """The user or the machine wants the command to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number
        """130 for SIGINT, 143 for SIGTERM."""


@contextlib.contextmanager
def end_at_once() -> Iterator[None]:
    """Within the block, both signals raise `Interrupted` in the main thread."""
    with _handled_by(_raise):
        yield


@contextlib.contextmanager
def end_in_good_order(grace: float, tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within the block, the first signal only asks for an end: what is given tells whether one did.

    The block is left by `Interrupted` when it ends by itself after that, when `grace` seconds are
    over, or on a second signal. Where it is not left then, since the main thread is in a long
    call of a library, the process ends. Outside the main thread, where Python knows no signals,
    nobody ever asks.

    Args:
        grace: seconds.
        tell: is called with a line for the user on the first signal.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise Interrupted(number)
        asked.append(number)
        _raise_in(grace, number)

    with _handled_by(ask), _watched(grace, tell):
        try:
            yield lambda: bool(asked)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if asked:
        raise Interrupted(asked[0])


@contextlib.contextmanager
def _watched(grace: float, tell: Callable[[str], None]) -> Iterator[None]:
    """Within the block, a thread hears of signals at once, also while Python's handlers wait.

    They run in the main thread between two of its instructions, and of two equal signals that
    wait they see one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # as Python needs it
    left = threading.Event()

    def heard(seconds: float | None) -> int | None:
        """The next of our signals; None when the time is over or the block is left."""
        until = None if seconds is None else time.monotonic() + seconds
        while not left.is_set():
            ours.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
            try:
                number = ours.recv(1)
            except TimeoutError:
                return None
            if number and number[0] in SIGNALS:
                return number[0]
        return None

    def watch() -> None:
        first = heard(None)
        if first is None:
            return
        tell(f"Stopping within {grace:g} s: what is in training is finished first, if it can be")
        last = heard(grace) or first
        if not left.wait(PATIENCE):
            end_process(Interrupted(last))

    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        theirs.close()  # which wakes the thread
        thread.join()
        ours.close()


def last_words(arguments: Sequence[str]) -> str:
    """What a user reads when a command is interrupted."""
    again = shlex.join(["accomplice", *arguments])
    return f"Interrupted; what was finished is kept. To go on: {again}"


def end_process(stop: Interrupted) -> NoReturn:
    """Say how to go on, and end this process, whatever its threads are doing.

    Nothing is lost: what is committed was committed before, and what is not does not count.
    """
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    print(f"{show_cursor}\n{last_words(sys.argv[1:])}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(stop.exit_code)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, both signals go to the handler; outside the main thread, as before.

    Python drops what is raised in a callback of its garbage collector, which JAX has, or in a
    `__del__`. `Interrupted` is then raised once more, a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    report = sys.unraisablehook

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if isinstance(what.exc_value, Interrupted):
            _raise_in(AGAIN, what.exc_value.number)
        else:
            report(what)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, old in before.items():
            signal.signal(number, old)


def _raise_in(seconds: float, number: int) -> None:
    """Raise `Interrupted` when that time is over."""
    signal.signal(signal.SIGALRM, lambda *_: _raise(number, None))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
