"""The first signal sets a flag that polling reads; the second has its usual effect."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from udskd.training.runtime.signals import Stopped, StopRequest


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_the_first_signal_is_a_request(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    with StopRequest() as stop:
        stop.poll()
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(Stopped):
            stop.poll()
    assert "stopping after this step" in capsys.readouterr().err


def test_the_second_one_stops_at_once() -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with StopRequest(), pytest.raises(KeyboardInterrupt):
        twice()


def test_the_previous_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in StopRequest.SIGNALS] != before
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before


def test_in_another_thread_training_works_without_handlers() -> None:
    entered: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            entered.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [False]


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
