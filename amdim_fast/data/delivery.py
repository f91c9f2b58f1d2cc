"""What a worker process hands to its caller: each result, or each error, arrives."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

SHARED_MEMORY = "/dev/shm"
TORCH_FILE = "</torch_"  # in errors of tensors in shared memory
MIB = 2**20
_ADVICE = "or decode without worker processes (--workers 0)"


class Calls(Dataset[bytes]):
    """Calls of a function as items, pickled: torch's queue would drop what it cannot send.

    Args:
        function: called with the index of the item.
        held: results that may wait for the caller at once; only for messages.
    """

    def __init__(self, function: Callable[[Any], Any], held: int) -> None:
        self.function, self.held = function, held

    def __getitem__(self, task: Any) -> bytes:
        try:
            result = self.function(task)
        except Exception as error:
            return _pickled_failure(error)
        try:
            return bytes(ForkingPickler.dumps(result))
        except Exception as error:
            return _pickled_failure(_undelivered(result, error, self.held))


def received(item: bytes) -> Any:
    """The result of a call in a worker.

    Raises:
        Exception: what the function raised. OSError: the worker could not hand over the result, or
            this process cannot take it. ConnectionError, EOFError: the worker is gone.
    """
    try:
        result = pickle.loads(item)
    except (ConnectionError, EOFError):
        raise
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"a worker's result cannot be taken over ({_reason(error)}); raise the limit (ulimit"
            f" -n), {_ADVICE}"
        ) from None
    if isinstance(result, _Failure):
        raise result.error from RuntimeError(f"in a worker process:\n{result.trace}")
    return result


class _Failure:
    def __init__(self, error: Exception, trace: str) -> None:
        self.error, self.trace = error, trace


def _pickled_failure(error: Exception) -> bytes:
    trace = "".join(traceback.format_exception(error))
    try:
        item = pickle.dumps(_Failure(error, trace))
        pickle.loads(item)
    except Exception:  # of a type that pickle cannot make again
        item = pickle.dumps(_Failure(RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return item


def _undelivered(result: Any, error: Exception, held: int) -> OSError:
    parts = result if isinstance(result, tuple | list) else [result]
    needed = sum(part.nbytes for part in parts if isinstance(part, Tensor))
    if TORCH_FILE not in str(error) or not os.path.isdir(SHARED_MEMORY):
        return OSError(f"a worker cannot hand over its result ({_reason(error)})")
    room = os.statvfs(SHARED_MEMORY)
    return OSError(
        f"{SHARED_MEMORY} cannot take a batch from a worker ({_reason(error).rpartition(': ')[2]}):"
        f" it has {room.f_blocks * room.f_frsize / MIB:,.0f} MB, and a batch takes"
        f" {needed / MIB:,.0f} MB, of which up to {held} are there at once; enlarge it (docker run"
        f" --shm-size={1 + (held + 1) * needed // 2**30}g), {_ADVICE}"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
