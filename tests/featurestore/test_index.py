"""Known against a plain dict, and digests that never confuse two rows."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.index import (
    CHANGED,
    DIGEST,
    NEW,
    KeySet,
    Known,
    contains,
    located,
    pair_digests,
    present,
    row_digests,
    text_digests,
)

# few distinct digests, so that lookups hit; zero bytes at the end must count
digests = st.sampled_from(
    [bytes([i]) + tail for i in range(4) for tail in (b"\0" * 15, b"\0" * 14 + b"\1", b"\xff" * 15)]
)
tables = st.dictionaries(digests, st.tuples(digests, st.integers(2, 5)))
texts = st.none() | st.text(max_size=4) | st.sampled_from(["", "-", "1:a", "0:", "é", "-0:"])
int64 = st.integers(-(2**63), 2**63 - 1)


def array(values: list[bytes]) -> np.ndarray:
    return np.array(values, DIGEST)


@given(tables, st.lists(st.tuples(digests, digests)), st.integers(0, 12))
def test_lookup_is_a_dict(table: dict[bytes, tuple[bytes, int]], asked: list[tuple[bytes, bytes]], cut: int) -> None:
    rows = list(table.items())
    parts = [
        (array([k for k, _ in part]), array([v for _, (v, _) in part]), np.array([s for _, (_, s) in part], np.uint8))
        for part in (rows[:cut], rows[cut:])
    ]
    known = Known.from_parts(iter(parts))
    answers = known.lookup(array([k for k, _ in asked]), array([v for _, v in asked]))
    expected = [NEW if k not in table else table[k][1] if table[k][0] == v else CHANGED for k, v in asked]
    assert answers.tolist() == expected
    assert len(known) == len(table)


@given(st.lists(st.tuples(digests, digests, st.integers(2, 5)), max_size=12), st.lists(digests, max_size=6))
def test_what_was_never_looked_up(rows: list[tuple[bytes, bytes, int]], asked: list[bytes]) -> None:
    """Keys may be there several times: the first one answers, and one look is enough for all of them."""
    keys, values = (array([row[n] for row in rows]) for n in (0, 1))
    known = Known(keys, values, np.array([row[2] for row in rows], np.uint8))
    first = {key: (value, state) for key, value, state in reversed(rows)}
    looked = (
        known.lookup(array(asked[:3]), array(asked[:3])).tolist()
        + known.lookup(array(asked[3:]), array(asked[3:])).tolist()
    )
    assert looked == [NEW if k not in first else first[k][1] if first[k][0] == k else CHANGED for k in asked]
    assert known.values(array(asked)).tolist() == array([first.get(k, (b"", 0))[0] for k in asked]).tolist()
    for states in ((), (2,), (3, 5), (2, 3, 4, 5)):
        there = {key for key, _, state in rows if state in states}
        assert known.unseen(*states).tolist() == np.sort(array(list(there - set(asked)))).tolist()
        assert known.count(*states) == len(there)


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=300), st.data())
def test_a_growing_set(numbers: list[int], data: st.DataObject) -> None:
    keys = np.array([b"%06d" % number for number in numbers], "S6")
    start = data.draw(st.integers(0, len(keys)))
    growing, at = KeySet(np.sort(keys[:start])), start
    while at < len(keys):
        end = data.draw(st.integers(at + 1, len(keys)))
        growing.add(keys[at:end])
        at = end
        lengths = [len(level) for level in growing._levels]
        assert all(long >= 4 * short for long, short in itertools.pairwise(lengths)) and sum(lengths) == at
    assert all(key in growing for key in keys.tolist()) and b"x" not in growing


def test_nothing_is_known_of_nothing() -> None:
    nothing = Known.from_parts([])
    assert nothing.lookup(array([b"a"]), array([b"b"])).tolist() == [NEW]
    assert nothing.values(array([b"a"])).tolist() == [b""] and nothing.unseen(2).tolist() == [] and len(nothing) == 0


@given(st.sets(digests), st.lists(digests))
def test_contains_is_a_set(there: set[bytes], asked: list[bytes]) -> None:
    keys = np.sort(array(list(there)))
    assert contains(keys, array(asked)).tolist() == [k in there for k in asked]
    at, found = located(keys, array(asked))
    assert keys[at[found]].tolist() == array(asked)[found].tolist()


@given(st.lists(digests), st.lists(st.lists(digests, max_size=5)))
def test_present_is_a_set_that_streams(keys: list[bytes], parts: list[list[bytes]]) -> None:
    keys.sort()
    there = {key for part in parts for key in part}
    found = present(array(keys), map(array, parts))
    assert found.tolist() == [key in there and key not in keys[:number] for number, key in enumerate(keys)]


@given(st.lists(st.tuples(texts, texts, texts), min_size=2, max_size=2))
def test_row_digests_are_injective(pair: list[tuple[str | None, ...]]) -> None:
    first, second = row_digests(pair)
    assert (first == second) == (pair[0] == pair[1])


@given(st.lists(texts, min_size=2, max_size=2))
def test_single_texts_are_injective(pair: list[str | None]) -> None:
    first, second = text_digests(pair)
    assert (first == second) == (pair[0] == pair[1])


def test_none_is_not_the_empty_string() -> None:
    rows = [(None, None), ("", ""), (None, ""), ("", None), ("0:", None), ("-", ""), ("ab", "c"), ("a", "bc")]
    assert len(set(row_digests(rows).tolist())) == len(rows)
    assert row_digests([]).shape == (0,) and text_digests([]).shape == (0,)


@given(st.lists(st.tuples(int64, int64), min_size=1))
def test_pair_digests_are_exact(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    digests = pair_digests(first, second)
    assert digests.dtype == DIGEST
    back = np.frombuffer(digests.tobytes(), "<i8").reshape(-1, 2)
    assert back.tolist() == [list(pair) for pair in pairs]
