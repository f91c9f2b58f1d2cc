"""Mapping a function over tasks in worker processes, with results in order."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from amdim_fast.checks import whole_number
from amdim_fast.data.delivery import Calls, received

Task = TypeVar("Task")
Result = TypeVar("Result")
DEAD_WORKER = re.compile("DataLoader worker .*(exited unexpectedly|killed by signal)")
GUARD = 'it must start its work below `if __name__ == "__main__":`'
MOST_WORKERS = 1024
_main_lock = threading.Lock()
# Unlike fork, safe beside threads and CUDA.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# Imported once, by the server, and not by each worker.
PRELOADED = ("torch.utils.data", __name__)


def worker_count(workers: int | None) -> int:
    """``workers``; None is the number of CPUs of this process.

    Raises:
        ValueError: it is no whole number, negative, or more than a machine can have.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    whole_number("workers", workers, least=0, most=MOST_WORKERS)
    return workers


def ordered_map(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    workers: int,
    ahead: int = 2,
) -> Generator[Result, None, None]:
    """``map(function, tasks)`` in ``workers`` processes of a torch DataLoader.

    Results come in the order of the tasks. Closing the iterator ends the workers, and so does the
    death of this process. Global random states are left alone.

    Args:
        function: picklable; so are tasks and results.
        tasks: may be endless; read only as far as workers need.
        workers: 0 calls the function in this process.
        ahead: tasks that each worker takes in advance.

    Raises:
        Exception: the function raised it. OSError: a worker could not hand over its result, for
            want of shared memory or open files. ChildProcessError: a worker died.
    """
    check_not_importing()
    if worker_count(workers) == 0:
        return (function(task) for task in tasks)
    return _in_workers(function, tasks, workers, ahead)


def _in_workers(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int
) -> Generator[Result, None, None]:
    context = multiprocessing.get_context(START_METHOD)
    _preload()
    lifeline, held_open = context.Pipe(duplex=False)
    loader: DataLoader[Any] = DataLoader(
        Calls(function, held=workers * ahead),
        sampler=tasks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_is,
        multiprocessing_context=context,
        worker_init_fn=partial(_start_worker, lifeline),
        generator=torch.Generator(),
    )
    died, items = False, None
    imports_main = _needs_main(function)
    try:
        with contextlib.nullcontext() if imports_main else _main_left_alone():
            items = iter(loader)
        for item in items:
            yield received(item)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A worker that dies while it hands over a tensor breaks the connection instead.
        died = not isinstance(error, RuntimeError) or DEAD_WORKER.search(str(error)) is not None
        if not died:
            raise
    finally:
        items = None  # an error's frames would keep it and its threads
        held_open.close()
        lifeline.close()
    # Raised here: torch's error would keep the iterator, too.
    if died:
        importing = f"; it imports the main script for what it works on: {GUARD}"
        raise ChildProcessError(
            "a worker process died; if memory ran out, use fewer workers"
            + (importing if imports_main else "")
        )


def _preload() -> None:
    """Let the fork server import torch, unless the program has chosen what it imports."""
    if START_METHOD != "forkserver":
        return
    from multiprocessing import forkserver

    chosen = getattr(forkserver._forkserver, "_preload_modules", None)
    if chosen == ["__main__"]:
        multiprocessing.set_forkserver_preload([*chosen, *PRELOADED])


def check_not_importing() -> None:
    """Raise where a worker is importing the main script, which would start the work again.

    Raises:
        RuntimeError: this is so; the sentence says how a script is guarded.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(f"a worker process is importing this script: {GUARD}")


class _Globals(pickle.Pickler):
    """Pickles all but the bulk, to see which modules it refers to."""

    def persistent_id(self, obj: Any) -> str | None:
        return "bulk" if isinstance(obj, torch.Tensor | np.ndarray) else None


def _needs_main(function: Callable[..., Any]) -> bool:
    """Whether a worker must import the main script to unpickle the function."""
    pickled = io.BytesIO()
    _Globals(pickled).dump(function)
    return b"__main__" in pickled.getvalue()


@contextlib.contextmanager
def _main_left_alone() -> Iterator[None]:
    """Processes started inside do not import the main script: multiprocessing skips this name."""
    main = sys.modules["__main__"]
    with _main_lock:
        spec, main.__spec__ = main.__spec__, ModuleSpec("__main__", None)
        try:
            yield
        finally:
            main.__spec__ = spec


def _as_is(result: Any) -> Any:
    return result


def _start_worker(lifeline: Connection, _worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    threading.Thread(target=_end_with_caller, args=(lifeline,), daemon=True).start()


def _end_with_caller(lifeline: Connection) -> None:
    """End with the caller; torch's own watchdog watches the parent, here the fork server."""
    parent = multiprocessing.parent_process()
    wait([lifeline, *([parent.sentinel] if parent else [])])
    os._exit(1)
