"""An error on one rank of a group is raised, with the same sentence, on every rank.

Ranks meet in exchanges. Each one gathers three integers per rank, and the host waits for them:
whether the rank has failed, and two values from the caller. If a rank has failed, a second gather
carries the type and sentence of its error, and every rank raises that of the lowest failing rank.
"""

from __future__ import annotations

import pickle
import zlib
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from amdim_fast.distributed.collectives import start_gather


def resolve(group_name: str) -> dist.ProcessGroup:
    """The process group of this name."""
    return dist.distributed_c10d._resolve_process_group(group_name)  # type: ignore[arg-type]


class ErrorsOnAllRanks:
    """Context: an error raised inside is raised on every rank of a group.

    The other ranks raise it in their next exchange: ``agree``, ``any_rank`` or the end of a context
    with ``together``. The sentence names the failing rank, unless all ranks fail with the same one.
    While torch.compile traces, an error is raised on its own rank only.

    Args:
        group_name: name of the group; without one, an error is raised on its own rank only.
        together: whether ranks that have not failed exchange too, so that all leave together.
    """

    def __init__(self, group_name: str | None, *, together: bool = False) -> None:
        self.group_name = group_name
        self.together = together

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.group_name is None or torch.compiler.is_compiling():
            return
        if isinstance(error, Exception):
            _exchange(self.group_name, error=error)
        elif error is None and self.together:
            _exchange(self.group_name)


def agree(group_name: str, images: int, signature: object) -> None:
    """Return if all ranks call with equally many images and an equal signature.

    Raises:
        ValueError: on every rank, if images or signatures differ.
        Exception: on every rank, the error that a rank met in ``ErrorsOnAllRanks``.
    """
    table = _exchange(group_name, images, zlib.crc32(repr(signature).encode()))
    counts, signatures = zip(*table, strict=True)
    if len(set(counts)) > 1:
        raise ValueError(
            f"the ranks have batches of {list(counts)} images; these must be equal: drop the last,"
            " incomplete batch"
        )
    if len(set(signatures)) > 1:
        raise ValueError(
            "the ranks call with different shapes, dtypes, options or requires_grad; only the"
            " values may differ"
        )


def any_rank(group_name: str, flag: bool) -> bool:
    """Whether the flag of any rank is set.

    Raises:
        Exception: on every rank, the error that a rank met in ``ErrorsOnAllRanks``.
    """
    return any(row[0] for row in _exchange(group_name, int(flag)))


def _exchange(
    group_name: str, first: int = 0, second: int = 0, *, error: Exception | None = None
) -> list[list[int]]:
    """The two values of every rank; raises the error of the lowest rank that has one."""
    group = resolve(group_name)
    own = torch.tensor([int(error is not None), first, second], device=_device(group))
    try:
        table = start_gather(own, group).wait().tolist()
    except RuntimeError:
        if error is not None:  # a rank is gone, but this rank's own error says more
            raise error from None
        raise
    if any(row[0] for row in table):
        _raise_lowest(group, error)
    return [row[1:] for row in table]


def _raise_lowest(group: dist.ProcessGroup, error: Exception | None) -> NoReturn:
    found: list[Any] = [None] * group.size()
    own = None if error is None else (_portable_type(error), str(error))
    dist.all_gather_object(found, own, group=group)
    rank = next(rank for rank, entry in enumerate(found) if entry is not None)
    if error is not None and all(entry == found[rank] for entry in found):
        raise error
    kind, sentence = found[rank]
    raise kind(f"rank {rank}: {sentence}") from error


def _portable_type(error: Exception) -> type:
    """The nearest base of the error's type that can be pickled and made from a sentence alone."""
    for kind in type(error).__mro__:
        try:
            pickle.dumps(kind)
            kind("")
        except Exception:
            continue
        return kind
    return RuntimeError


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where the group exchanges small tensors: CPUs if it can, so that no GPU stream waits."""
    kinds = [device.type for device in group._device_types]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])
