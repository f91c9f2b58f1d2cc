"""Scripts of the tests as processes of their own, alone or as the ranks of a group."""

import contextlib
import datetime
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.forked import ENVIRONMENT, PACKAGE, Process

# Forks have no environment of their own as they start, and are not followed by coverage.
FORKS = sys.platform == "linux" and "COVERAGE_PROCESS_CONFIG" not in os.environ
READERS = {"pt": torch.load, "json": lambda path: json.loads(path.read_text())}


def start(
    arguments, folder, *, variables=None, stderr=subprocess.PIPE, session=False, imported=PACKAGE
):
    """``python ARGUMENTS`` in ``folder``, its output in pipes: a fork of one that has ``imported``.

    With nothing imported it is a new interpreter. ``variables`` change the environment, None
    removes; what is imported already has not seen them. With ``session`` it begins one of its own.
    """
    words = [*map(str, arguments)]
    changed = os.environ | ENVIRONMENT | (variables or {})
    environment = {name: value for name, value in changed.items() if value is not None}
    if FORKS and imported:
        return Process(
            words, folder, environment, stderr=stderr, session=session, imported=imported
        )
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=session,
    )


def run(arguments, folder, seconds=240, **options):
    """What ``python ARGUMENTS`` in ``folder`` came to, a ``subprocess.CompletedProcess``."""
    with start(arguments, folder, **options) as process:
        try:
            said = process.communicate(timeout=seconds)
        finally:
            process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, *said)


@contextlib.contextmanager
def started_ranks(script, world, folder, *words, **options):
    """The processes ``python SCRIPT RANK WORLD FOLDER WORDS`` of all ranks; none is left."""
    with contextlib.ExitStack() as exits:
        ranks = []
        for rank in range(world):
            process = start([script, rank, world, folder, *words], folder, **options)
            ranks.append(exits.enter_context(process))
            exits.callback(process.kill)
        yield ranks


def run_ranks(script, world, folder, seconds):
    """Wait for ``python SCRIPT RANK WORLD FOLDER`` of all ranks; the folder is made if missing.

    What they printed is shown where one fails.
    """
    folder.mkdir(exist_ok=True)
    with started_ranks(script, world, folder, stderr=subprocess.STDOUT) as ranks:
        said = [process.communicate(timeout=seconds)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(said)


def found_by_ranks(script, parent, seconds, suffix="pt"):
    """World size -> what each rank left as RANK.SUFFIX in its folder; each size is started once."""

    @functools.cache
    def of(world):
        folder = parent / str(world)
        shutil.rmtree(folder, ignore_errors=True)  # of ranks that failed
        run_ranks(script, world, folder, seconds)
        return [READERS[suffix](folder / f"{rank}.{suffix}") for rank in range(world)]

    return of


@contextlib.contextmanager
def gloo_rank(seconds):
    """In a script that ``run_ranks`` started: rank, world size and folder, in a gloo group."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=seconds),
    )
    yield rank, world, folder
    dist.destroy_process_group()
