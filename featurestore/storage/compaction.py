"""Keep a table small after each commit: merge small fragments, drop old versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from featurestore.storage.fragments import Piece
from featurestore.storage.table import Table

TIER = 16  # a tier of this many fragments is merged; those of the next tier have this many times the rows
LARGE = TIER**3 // 2  # rows; larger fragments stay as they are, and all shards of a run but the last are larger
MAX_DELETED = 0.5  # share of a fragment's rows
MAX_VERSIONS = 16


def tend(table: Table) -> None:
    """Merge small fragments and drop old versions; the store's lock must be held.

    However many runs there are, a row is rewritten at most three times, unless other rows of its fragment are replaced.
    Besides the large fragments there are at most 3 * (TIER - 1) + 1 others.

    Raises:
        StoreError: the table cannot be written.
    """
    version = table.version  # pinned: rows that another program deletes meanwhile must not come back
    small = worth_merging(table.pieces(version))
    if small:
        table.swap(small, table.stage(table.fragment_rows(small, version)), version)
    if len(table.versions()) > MAX_VERSIONS:
        table.cleanup()


def worth_merging(pieces: Sequence[Piece]) -> list[int]:
    """Return the numbers of the fragments to merge now: full tiers of small ones, and those with most rows deleted."""
    tiers: dict[int, list[int]] = defaultdict(list)
    chosen = []
    for piece in pieces:
        if piece.rows < (1 - MAX_DELETED) * piece.physical_rows:
            chosen.append(piece.id)
        elif piece.rows < LARGE:
            tiers[sum(piece.rows >= TIER**power for power in (1, 2))].append(piece.id)
    for tier in tiers.values():
        if len(tier) >= TIER:
            chosen += tier
    return sorted(chosen)
