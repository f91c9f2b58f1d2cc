"""Signals that stop a run: the first, its echo, and an impatient second one."""

import signal

import pytest

from amdim_fast.training import signals as signals_module
from amdim_fast.training.signals import Stopped, StopSignals


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Those of a process in the foreground; one in the background ignores SIGINT."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(signals_module.time, "monotonic", lambda: now[0])
    return now


def test_an_echo_is_not_a_second_signal(clock):
    with StopSignals() as signals:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            clock[0] += 0.4
        assert signals.requested
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_later_signal_has_its_usual_effect(clock, first):
    with StopSignals():
        signal.raise_signal(first)
        clock[0] += 1.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_where_it_may_interrupt_the_first_raises_and_its_echo_does_not(clock):
    with StopSignals() as signals:
        with pytest.raises(Stopped), signals.interruptible():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            signals.check()


def test_a_signal_before_what_may_be_interrupted_stops_it_at_once(clock):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), signals.interruptible():
            pytest.fail("it began")


def test_nothing_is_interrupted_where_others_wait(clock):
    with StopSignals(raising=False) as signals, signals.interruptible():
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested
