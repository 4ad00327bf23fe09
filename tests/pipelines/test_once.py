"""What is made once per process: by one thread for all, and anew in a child."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.concurrency import Once


def test_threads_that_ask_at_once_wait_for_one_to_make_it() -> None:
    made: list[tuple[int, int]] = []

    @Once
    def slow(a: int, b: int = 2) -> object:
        time.sleep(0.1)
        made.append((a, b))
        return object()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: slow(1, 2) if n % 2 else slow(1), range(8)))
    assert made == [(1, 2)] and len(set(map(id, results))) == 1
    assert slow(3) is not results[0] and made[1:] == [(3, 2)]
    slow(1)
    assert made[2:] == [(1, 2)]  # only the last one is kept
    slow.cache_clear()
    slow(1, b=2)
    assert made[3:] == [(1, 2)]


def test_a_child_has_threads_of_its_own() -> None:
    """Those of its parent are not in it, so that work given to the parent's pool would never be done."""
    code = """
import os
from pipelines.concurrency import shared_pool
shared_pool(2).submit(int).result()
child = os.fork()
if not child:
    os._exit(shared_pool(2).submit(lambda: 7).result(10))
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 7


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_a_worker_under_dasks_nanny_keeps_the_memory_of_its_pixels() -> None:
    """The nanny lets glibc give back what is freed at once: each image then waits for the system to make its pages."""
    code = (
        "import resource; import numpy as np; from pipelines.concurrency import bound_memory; bound_memory();"
        "made = lambda: np.ones((500, 375, 4), np.uint8) is None; made();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; [made() for _ in range(200)];"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    nanny = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], env=nanny, stdout=subprocess.PIPE, text=True, check=True)
    pages = 500 * 375 * 4 // 4096
    assert int(done.stdout) < 20 * pages  # of 200 images
