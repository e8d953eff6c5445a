"""A run that is asked to stop looks at it between two steps."""

import os
import signal
import threading

import pytest

from firstorder.core.training.interrupt import Interrupted, deferred, never


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_whoever_looks(number):
    said = []
    before = signal.getsignal(number)
    with deferred(said.append) as asked:
        assert asked() == never() == 0
        os.kill(os.getpid(), number)
        assert asked() == number
    assert said == [number.name]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not():
    with deferred() as asked:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert asked() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_beside_the_main_one_holds_nothing_back():
    found = []

    def look():
        with deferred() as asked:
            found.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(0, signal.default_int_handler)]


def test_the_exit_code_is_what_a_shell_reports():
    assert [Interrupted(number, 3).code for number in (signal.SIGINT, signal.SIGTERM)] == [130, 143]
    assert str(Interrupted(signal.SIGTERM, 3)) == "stopped by SIGTERM; step 3 follows"
