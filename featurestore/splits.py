"""Deterministic splits that depend on an image's content (or its group) and on nothing else.

A picture's place is a hash of its key. Adding pictures moves nobody, identical bytes and members of one group
stay together, and every store that holds the picture agrees. The price: a class gets its shares in
expectation (binomially), not exactly; exact shares cannot be had without moving pictures later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

from featurestore.errors import UsageError
from featurestore.limits import check_seed

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
VAL_SHARE = TEST_SHARE = 0.15
FOLDS = 2**63  # a seed that no split has: folds are independent of the splits


def place(key: bytes, seed: int = 0) -> float:
    """A uniform number in [0, 1) from the key: the first 53 bits of BLAKE2b."""
    digest = hashlib.blake2b(key, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def check(val: float, test: float, seed: int) -> None:
    """Raise UsageError for shares outside [0, 1) or adding up to 1 or more, and for what is no seed."""
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"Expected: shares for val and test that leave a train split. Got: {val} and {test}.")
    check_seed("--split-seed", seed)


def check_name(split: str) -> None:
    """Raise UsageError for what is not the name of a split."""
    if split not in SPLITS:
        raise UsageError(f"Expected: a split, one of {', '.join(SPLITS)}. Got: {split!r}.")


def assign(
    keys: Iterable[bytes],
    given: Collection[str | None],
    *,
    val: float = VAL_SHARE,
    test: float = TEST_SHARE,
    seed: int = 0,
) -> list[str]:
    """Assign each row to "train", "val" or "test".

    A row with a given split keeps it, a row without one is placed by its key. Where every row has one but nobody
    is in val (or test), that split is cut from the rows given "train", again by key.

    Args:
        keys: one a row, the group if it has one, else the content's digest; equal keys go together.
        given: one a row, the split that the corpus names, or None.
        val: share of the validation split, in [0, 1).
        test: share of the test split, in [0, 1).
        seed: another seed gives another, unrelated assignment.

    Returns:
        One split a row.

    Raises:
        UsageError: see ``check``.
    """
    check(val, test, seed)
    named = set(given)
    cuts = {
        None: (val, test),
        TRAIN: (0.0, 0.0) if None in named else (0.0 if VAL in named else val, 0.0 if TEST in named else test),
        VAL: (0.0, 0.0),
        TEST: (0.0, 0.0),
    }
    splits = []
    for key, split in zip(keys, given, strict=True):
        val_share, test_share = cuts[split]
        at = place(key, seed)
        splits.append(TEST if at < test_share else VAL if at >= 1 - val_share else split or TRAIN)
    return splits
