"""SIGTERM and Ctrl-C that let a run put itself in order."""

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
    """A signal asked to stop, outside of ``finishing``."""


class StopSignals:
    """Catches SIGTERM and SIGINT while it is entered; outside the main thread it does nothing.

    Inside ``finishing`` the first signal only sets ``requested``; outside it raises Stopped. One
    that comes within a second of it is its echo (``timeout`` and ``torchrun`` signal a process and
    its group); a later one has the effect it had before.

    Args:
        raising: False where other processes would wait for this one: nothing is raised by a signal.

    Attributes:
        requested: whether a signal has come.
    """

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, raising: bool = True) -> None:
        self.requested = False
        self._first = 0.0
        self._raising = raising
        self._finishing = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in self.signals}
        return self

    def __exit__(self, *_error: object) -> None:
        self._release()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """What must not be cut short; whoever is in it looks at ``requested``."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def check(self, agreed: Callable[[bool], bool] = bool) -> None:
        """Raise Stopped if a signal has come, or as ``agreed`` makes of that."""
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
        if self._raising and not self._finishing:
            raise Stopped

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
