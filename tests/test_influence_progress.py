"""What a person sees while something works, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from influence import progress


@pytest.fixture
def shown(monkeypatch):
    """A function that makes standard error a terminal, or a log, and returns what it gets."""

    def replace(terminal):
        file = io.StringIO()
        monkeypatch.setattr(
            progress, "console", Console(file=file, force_terminal=terminal, soft_wrap=True)
        )
        return file

    return replace


@pytest.mark.parametrize("terminal", [False, True])
def test_work_of_unknown_length_is_named_before_it_is_done(shown, terminal):
    file = shown(terminal)
    with progress.working("Looking for it"):
        assert "Looking for it" in file.getvalue()


def test_a_log_gets_one_line_of_work_and_a_terminal_also_the_time(shown):
    log = shown(False)
    with progress.working("Looking for it"):
        pass
    assert log.getvalue() == "Looking for it\n"
    screen = shown(True)
    with progress.working("Looking for it"):
        pass
    assert "0:00:00" in screen.getvalue()


def test_an_error_ends_the_work_that_is_shown(shown):
    file = shown(True)
    with pytest.raises(ZeroDivisionError), progress.working("Looking for it"):
        _ = 1 / 0
    seen = file.getvalue()
    progress.console.print("after")
    assert file.getvalue().removeprefix(seen) == "after\n"
