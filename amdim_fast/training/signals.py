"""SIGTERM and Ctrl-C: the run finishes its step and saves it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ECHO_SECONDS = 1.0


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal has asked the run to stop."""


class StopSignals:
    """Context that catches SIGTERM and SIGINT; outside the main thread it does nothing.

    The first signal sets ``requested`` and, inside ``interruptible``, raises Stopped. A second one
    within a second of it is ignored, because ``timeout`` and ``torchrun`` signal a process twice; a
    later one acts as if this context did not exist.

    Args:
        raising: False where other processes would wait for this one; ``interruptible`` then raises
            nothing.

    Attributes:
        requested: whether a signal has been received.
    """

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, raising: bool = True) -> None:
        self.requested = False
        self._first = 0.0
        self._raising = raising
        self._interruptible = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in self.signals}
        return self

    def __exit__(self, *_error: object) -> None:
        self._release()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context that a signal cuts short: one received before or inside raises Stopped."""
        self._interruptible = self._raising
        try:
            if self._interruptible:
                self.check()
            yield
        finally:
            self._interruptible = False

    def check(self, agreed: Callable[[bool], bool] = bool) -> None:
        """Raise Stopped if a signal has come; ``agreed`` turns all processes' flags into one."""
        if agreed(self.requested):
            raise Stopped

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested:
            if now > self._first + ECHO_SECONDS:
                self._release()
                signal.raise_signal(number)
            return
        self.requested, self._first = True, now
        if self._interruptible:
            raise Stopped

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
