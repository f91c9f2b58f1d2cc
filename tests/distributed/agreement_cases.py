"""One rank's error, raised on all; run as a script, one rank of a gloo group."""

import json

import torch.distributed as dist

from amdim_fast.distributed.agreement import ErrorsOnAllRanks, agree, any_rank
from tests.processes import gloo_rank


class ColorError(LookupError):
    """Of a sentence alone; other processes find it here too."""


def raised(error=None, *, together=True, after=None):
    """Type, its base and sentence of what a context raises, or ``after`` it."""
    name = dist.group.WORLD.group_name
    try:
        with ErrorsOnAllRanks(name, together=together):
            if error is not None:
                raise error
        if after is not None:
            return after(name)
    except Exception as found:
        return type(found).__name__, type(found).__base__.__name__, str(found)
    return None


def cases(rank, world):
    class LocalError(OSError):
        """Unknown to other processes."""

    last = rank == world - 1
    decoding = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    missing = FileNotFoundError("no such file")
    return {
        "none": raised(),
        "type": raised(missing if last else None),
        "own type": raised(ColorError("mauve") if last else None),
        "local type": raised(LocalError("full") if last else None),
        "many arguments": raised(decoding if last else None),
        "lowest": raised(ValueError(f"of {rank}") if rank else None),
        "same": raised(ValueError("one for all")),
        "told": raised(
            missing if last else None, together=False, after=lambda n: any_rank(n, last)
        ),
        "before a call": raised(
            missing if last else None, together=False, after=lambda name: agree(name, 3, "")
        ),
        "flag": raised(together=False, after=lambda name: any_rank(name, last)),
        "no flag": raised(together=False, after=lambda name: any_rank(name, False)),
        "images": raised(together=False, after=lambda name: agree(name, 3 + last, "")),
        "signature": raised(together=False, after=lambda name: agree(name, 3, rank)),
        "agreed": raised(together=False, after=lambda name: agree(name, 3, "")),
    }


if __name__ == "__main__":
    with gloo_rank(seconds=60) as (rank, world, folder):
        (folder / f"{rank}.json").write_text(json.dumps(cases(rank, world)))
