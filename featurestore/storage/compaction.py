"""Keep a table small after each commit: merge small fragments, drop old versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from featurestore.storage.table import Piece, Table

TIER = 16  # fragments of one size are merged when there are so many; the next size has so many times the rows
LARGE = TIER**3 // 2  # rows; larger fragments stay as they are, and a run's shards are larger but for the last
MOST_DELETED = 0.5  # of a fragment's rows
MOST_VERSIONS = 16


def tend(table: Table) -> None:
    """Merge what has become too small and drop old versions; the store's lock is held.

    However many runs there are, a row is written again three times in its life at most, but for rows whose neighbours
    are replaced; and beside the large fragments there are never more than 3 * (TIER - 1) + 1 others.

    Raises:
        StoreError: it cannot be written.
    """
    version = table.version  # another program that deletes rows meanwhile must not find them there again
    small = worth_merging(table.pieces(version))
    if small:
        table.swap(small, table.stage(table.fragment_rows(small, version)), version)
    if len(table.versions()) > MOST_VERSIONS:
        table.cleanup()


def worth_merging(pieces: Sequence[Piece]) -> list[int]:
    """The numbers of the fragments to merge now: the full tiers of small ones, and those that are mostly deleted."""
    tiers: dict[int, list[int]] = defaultdict(list)
    chosen = []
    for piece in pieces:
        if piece.rows < (1 - MOST_DELETED) * piece.physical_rows:
            chosen.append(piece.id)
        elif piece.rows < LARGE:
            tiers[sum(piece.rows >= TIER**power for power in (1, 2))].append(piece.id)
    for tier in tiers.values():
        if len(tier) >= TIER:
            chosen += tier
    return sorted(chosen)
