"""Splits: an image's place depends on its key alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import UsageError
from featurestore.limits import MAX_SEED
from featurestore.splits import TEST, TRAIN, VAL, Split, assign, place

keys = st.lists(st.binary(max_size=32), max_size=40)
shares = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).filter(lambda pair: sum(pair) < 1)
seeds = st.integers(0, MAX_SEED)
many = [b"%d" % i for i in range(20_000)]
nobody = [None] * len(many)


@given(keys, keys, shares, seeds)
def test_adding_rows_moves_nobody(old: list[bytes], new: list[bytes], share: tuple[float, float], seed: int) -> None:
    val, test = share
    before = assign(old, [None] * len(old), Split(val, test, seed))
    after = assign(new + old, [None] * len(new + old), Split(val, test, seed))
    assert after[len(new) :] == before


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b""]), max_size=30), shares, seeds)
def test_equal_keys_go_together(rows: list[bytes], share: tuple[float, float], seed: int) -> None:
    splits = assign(rows, [None] * len(rows), Split(share[0], share[1], seed))
    assert len(set(zip(rows, splits, strict=True))) == len(set(rows))


@given(st.lists(st.tuples(st.binary(), st.sampled_from([None, TRAIN, VAL, TEST]))), shares)
def test_given_splits_are_kept(rows: list[tuple[bytes, str | None]], share: tuple[float, float]) -> None:
    named = [split for _, split in rows]
    splits = assign([key for key, _ in rows], named, Split(share[0], share[1]))
    for given_split, split in zip(named, splits, strict=True):
        if given_split in (VAL, TEST) or (given_split == TRAIN and None in named):
            assert split == given_split


def test_val_and_test_do_not_influence_each_other() -> None:
    def members(split: str, **share: float) -> set[int]:
        return {i for i, s in enumerate(assign(many, nobody, Split(**share))) if s == split}

    tested = members(TEST, val=0.15, test=0.2)
    assert tested == members(TEST, val=0, test=0.2) == members(TEST, val=0.7, test=0.2)
    validated = members(VAL, val=0.2, test=0.15)
    assert validated == members(VAL, val=0.2, test=0) == members(VAL, val=0.2, test=0.7)
    assert tested < members(TEST, val=0.15, test=0.3)
    assert validated < members(VAL, val=0.3, test=0.15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.02, 0.5), (0.3, 0.0), (0.0, 0.0)])
def test_shares_are_binomial(val: float, test: float, seed: int) -> None:
    counted = Counter(assign(many, nobody, Split(val, test, seed)))
    for split, share in ((VAL, val), (TEST, test), (TRAIN, 1 - val - test)):
        sigma = (len(many) * share * (1 - share)) ** 0.5
        assert abs(counted[split] - len(many) * share) <= 5 * sigma


def test_seeds_are_unrelated() -> None:
    a, b = assign(many, nobody, Split(0, 0.5, 1)), assign(many, nobody, Split(0, 0.5, 2))
    same = sum(x == y for x, y in zip(a, b, strict=True))
    assert abs(same - len(many) / 2) < 5 * (len(many) / 4) ** 0.5


def test_unnamed_rows_are_placed_beside_named_ones() -> None:
    """Some rows name a split: those keep it, the others are placed as if all were unnamed."""
    named = [TRAIN if i % 2 else None for i in range(len(many))]
    splits = assign(many, named)
    assert set(splits[1::2]) == {TRAIN}
    assert splits[::2] == assign(many[::2], nobody[::2])


@pytest.mark.parametrize(
    ("given_split", "made"), [({TRAIN}, {VAL, TEST}), ({TRAIN, TEST}, {VAL}), ({TRAIN, VAL}, {TEST})]
)
def test_missing_splits_are_cut_from_train(given_split: set[str], made: set[str]) -> None:
    others = sorted(given_split - {TRAIN})
    named = [others[0] if others and i < 1000 else TRAIN for i in range(len(many))]
    splits = assign(many, named)
    unnamed = assign(many, nobody)
    for before, after, free in zip(named, splits, unnamed, strict=True):
        assert after == (free if before == TRAIN and free in made else before)


def test_all_named_splits_are_left_alone() -> None:
    named = [(TRAIN, VAL, TEST)[i % 3] for i in range(len(many))]
    assert assign(many, named) == named


@pytest.mark.parametrize("share", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (-0.1, 0.2), (0.2, -0.1), (float("nan"), 0.1)])
def test_wrong_shares_are_refused(share: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="shares"):
        assign([b"a"], [None], Split(share[0], share[1]))


def test_rows_must_match() -> None:
    with pytest.raises(ValueError):
        assign([b"a", b"b"], [None])


@given(st.binary(), seeds)
def test_place_is_uniform_interval(key: bytes, seed: int) -> None:
    assert 0 <= place(key, seed) < 1


def test_assignment_is_pinned() -> None:
    """If this fails, test images of existing stores would be trained on."""
    pinned = [bytes([i]) * 32 for i in range(16)] + [b"group:a", b"group:b", b"group:c", b""]
    assert "".join(split[1] for split in assign(pinned, [None] * 20)) == "rrarrrarrrrrrrrrrrar"
    assert "".join(split[1] for split in assign(pinned, [None] * 20, Split(0.3, 0.3, 7))) == "reeeaerreearaerrrrra"
    assert place(b"\x00" * 32) == 0.6299085342998937
    assert place(b"group:a", seed=1) == 0.04785768020462566
