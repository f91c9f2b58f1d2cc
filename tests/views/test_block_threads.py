"""The block function that GPUs run, on host threads with a real barrier, under sanitizers."""

import os
import re
import subprocess

import pytest

from tests.csrc.build import CSRC, build

ENUM = re.search(r"enum Site \{(.*?)\}", (CSRC / "shared/team.h").read_text(), re.DOTALL)
SITES = [name.strip() for name in ENUM.group(1).split(",")] + ["kPlanned"]


class Program:
    """block.cpp under one sanitizer."""

    def __init__(self, sanitizer):
        self.path = build(
            "block",
            *("-O1", "-g1", "-pthread"),
            *("-fno-sanitize-recover=all", f"-fsanitize={sanitizer}"),
        )

    def __call__(self, kind, *, threads, jobs, left_out=-1, seed=0, short=0):
        arguments = (kind, threads, left_out, seed, jobs, short)
        return subprocess.run(
            [self.path, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "OMP_NUM_THREADS": "1"},
        )


@pytest.fixture(scope="module")
def races():
    return Program("thread")


@pytest.fixture(scope="module")
def bounds():
    return Program("address,undefined")


@pytest.mark.parametrize("kind", ["possible", "any"])
@pytest.mark.parametrize(("threads", "jobs"), [(1, 200), (2, 200), (5, 200), (32, 30)])
def test_a_team_gives_the_bits_of_one_thread_without_a_race(races, kind, threads, jobs):
    done = races(kind, threads=threads, jobs=jobs)
    assert (done.returncode, done.stderr) == (0, "")


# The last two are not of the block functions: the barriers between two tiles in the same memory,
# and after one thread has planned for all. With fewer than four threads a
# sum needs no barrier.
@pytest.mark.parametrize("site", range(len(SITES)), ids=SITES)
@pytest.mark.parametrize("threads", [4, 5])
def test_a_missing_barrier_is_caught(races, site, threads):
    done = races("possible", threads=threads, jobs=200, left_out=site)
    assert done.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in done.stderr


@pytest.mark.parametrize(("threads", "jobs"), [(2, 200), (5, 200), (32, 30)])
def test_a_team_stays_within_its_memory(bounds, threads, jobs):
    done = bounds("any", threads=threads, jobs=jobs, seed=1)
    assert (done.returncode, done.stderr) == (0, "")


def test_ten_thousand_impossible_jobs_stay_within_their_memory(bounds):
    done = bounds("any", threads=1, jobs=10_000, seed=2)
    assert (done.returncode, done.stderr) == (0, "")


def test_one_missing_byte_is_caught(bounds):
    done = bounds("any", threads=1, jobs=200, short=1)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
