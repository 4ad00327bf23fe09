"""Work in threads: in order, not too far ahead, and over when it is over."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.concurrency import AT_ONCE, ahead_of, side_by_side


def test_no_more_than_so_many_are_begun_and_not_taken() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        results = ahead_of(pool, lambda n: begun.append(n) or n * n, iter(range(100)), 5)
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        time.sleep(0.05)
        assert sorted(begun) == list(range(7))
        assert list(results) == [n * n for n in range(3, 100)]


def test_when_it_ends_early_nothing_is_running_any_more() -> None:
    """A pool that others use is not shut down, so that whoever ends has to wait for its own calls."""
    begun, over = list[int](), list[int]()

    def work(n: int) -> int:
        if n == 0:
            raise ValueError("no more")
        begun.append(n)
        time.sleep(0.2)
        over.append(n)
        return n

    with ThreadPoolExecutor(4) as pool:
        with pytest.raises(ValueError, match="no more"):
            list(ahead_of(pool, work, range(50), 4))
        assert sorted(over) == sorted(begun) and set(begun) <= {1, 2, 3}


def test_many_go_side_by_side_and_one_in_this_thread() -> None:
    together = threading.Barrier(4)
    assert list(side_by_side(lambda n: (together.wait(10), n)[1], range(4))) == [0, 1, 2, 3]
    assert list(side_by_side(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]
    assert list(side_by_side(lambda n: n, [])) == []
    assert list(side_by_side(lambda n: -n, range(3 * AT_ONCE))) == [-n for n in range(3 * AT_ONCE)]
