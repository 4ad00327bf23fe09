"""Deterministic splits that depend only on an image's content (or its group) and on the seed.

A hash of an image's key decides its split. Adding images moves no other image, identical contents and images of one
group stay together, and all stores that hold an image agree. In return, a class gets its shares only in expectation
(binomially), not exactly: exact shares would require moving images later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated

from featurestore.errors import UsageError
from featurestore.limits import check_seed
from featurestore.options import Option, share

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
FOLDS = 2**63  # a seed that no split can have, so that folds are independent of the splits


@dataclass(frozen=True)
class Split:
    """How to split the images that the corpus does not split itself: shares in [0, 1), and a seed.

    Another seed gives an unrelated split.
    """

    val: Annotated[
        float, Option("Validation's share, 0.1 or 10%, where the corpus names none.", parse=share, metavar="SHARE")
    ] = 0.15
    test: Annotated[
        float, Option("Test's share, 0.1 or 10%, where the corpus names none.", parse=share, metavar="SHARE")
    ] = 0.15
    seed: Annotated[int, Option("Another seed, another split.", flag="--split-seed")] = 0

    def check(self) -> None:
        """Raise UsageError for shares outside [0, 1) or with a sum of 1 or more, and for an invalid seed."""
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise UsageError(
                f"Expected: shares for val and test that leave a train split. Got: {self.val} and {self.test}."
            )
        check_seed("--split-seed", self.seed)


def place(key: bytes, seed: int = 0) -> float:
    """Return a uniform number in [0, 1) made from the key: 53 bits of its BLAKE2b digest."""
    digest = hashlib.blake2b(key, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def check_name(split: str) -> None:
    """Raise UsageError unless this is the name of a split."""
    if split not in SPLITS:
        raise UsageError(f"Expected: a split, one of {', '.join(SPLITS)}. Got: {split!r}.")


def assign(keys: Iterable[bytes], given: Collection[str | None], split: Split = Split()) -> list[str]:
    """Assign each row to "train", "val" or "test".

    A row with a given split keeps it; a row without one is placed by its key. If every row has a given split but none
    is in val (or test), that split is taken from the rows given "train", also by key.

    Args:
        keys: one per row, the group if it has one, else the content's digest; rows with equal keys stay together.
        given: one per row, the split that the corpus names, or None.
        split: the shares and the seed.

    Returns:
        One split per row.

    Raises:
        UsageError: see ``Split.check``.
    """
    split.check()
    val, test = split.val, split.test
    named = set(given)
    cuts = {
        None: (val, test),
        TRAIN: (0.0, 0.0) if None in named else (0.0 if VAL in named else val, 0.0 if TEST in named else test),
        VAL: (0.0, 0.0),
        TEST: (0.0, 0.0),
    }
    splits = []
    for key, own in zip(keys, given, strict=True):
        val_share, test_share = cuts[own]
        at = place(key, split.seed)
        splits.append(TEST if at < test_share else VAL if at >= 1 - val_share else own or TRAIN)
    return splits
