"""What happens on Ctrl-C and when a machine is taken away (SIGINT and SIGTERM)."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
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
    over, or on a second signal. Outside the main thread, where Python knows no signals, nobody
    ever asks.

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
        tell(f"Stopping within {grace:g} s: what is in training is finished first, if it can be")

    with _handled_by(ask):
        try:
            yield lambda: bool(asked)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if asked:
        raise Interrupted(asked[0])


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
