"""Every rank of a group starts a call, or every rank raises the same sentence."""

from __future__ import annotations

import zlib
from types import TracebackType

import torch
import torch.distributed as dist

from amdim_fast.distributed.collectives import start_gather

LONGEST_SENTENCE = 2048
# What the other ranks raise for an error of one; any other kind is a RuntimeError there.
ERRORS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError)


def resolve(group_name: str) -> dist.ProcessGroup:
    """The process group of this name."""
    return dist.distributed_c10d._resolve_process_group(group_name)  # type: ignore[arg-type]


def agree(group_name: str, images: int, signature: object) -> None:
    """Return where all ranks call with as many images and an equal signature.

    Raises:
        ValueError: on every rank, if images or signatures differ.
        Exception: on every rank, the error that a rank met in ``ErrorsOnAllRanks``.

    One gather of three integers a rank, which the host waits for.
    """
    table = _exchange(resolve(group_name), [0, images, zlib.crc32(repr(signature).encode())])
    counts = [row[1] for row in table]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the ranks of group have batches of {counts} images; they must be equal: drop the last"
            " incomplete batch"
        )
    if len({row[2] for row in table}) > 1:
        raise ValueError(
            "the ranks of group call with different shapes, dtypes, options or needs of gradients;"
            " all but the values must be equal"
        )


class ErrorsOnAllRanks:
    """Context of what may fail before ``agree``: an error inside is raised on every rank.

    The sentence is that of the lowest failing rank, which it names. Without a group, and while
    torch.compile traces, errors stay where they are.
    """

    def __init__(self, group_name: str | None) -> None:
        self.group_name = group_name

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
            place = next((i for i, known in enumerate(ERRORS) if isinstance(error, known)), 0)
            _exchange(resolve(self.group_name), [1 + place, 0, 0], str(error))


def _exchange(group: dist.ProcessGroup, status: list[int], sentence: str = "") -> list[list[int]]:
    """The statuses of all ranks; raises the first error among them."""
    device = _device(group)
    table = start_gather(torch.tensor(status, device=device), group).wait().tolist()
    failed = [rank for rank, row in enumerate(table) if row[0] > 0]
    if failed:
        text = sentence.encode()[:LONGEST_SENTENCE].ljust(LONGEST_SENTENCE, b"\0")
        own = torch.tensor(list(text), dtype=torch.uint8, device=device)
        texts, rank = start_gather(own, group).wait(), failed[0]
        found = bytes(texts[rank].tolist()).rstrip(b"\0").decode(errors="ignore")
        raise ERRORS[table[rank][0] - 1](f"rank {rank} of group: {found}")
    return table


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where the group exchanges small tensors: CPUs if it can, so that no GPU stream waits."""
    kinds = [device.type for device in group._device_types]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])
