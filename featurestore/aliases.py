"""Aliases: named pointers to heads, each with the history of the heads that it pointed at."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from featurestore import layout
from featurestore.errors import StoreCorrupt, UsageError
from featurestore.runs import is_run_id, utc_now
from featurestore.storage.files import fsync, listed, read_sealed, write_sealed

CHAMPION = "champion"  # the alias that is used if no head is named
MAX_HISTORY = 1000


@dataclass(frozen=True)
class Move:
    """A head that an alias has pointed at, and since when (UTC, ISO 8601)."""

    head_id: str
    moved: str


def check_alias(name: str) -> None:
    """Raise UsageError unless an alias may have this name; unlike a run id, it must not begin with a digit."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
        raise UsageError(
            "Expected: an alias of up to 64 small letters, digits, '_' or '-' that begins with a letter. "
            f"Got: {name[:100]!r}."
        )


def history(store: Path, name: str) -> list[Move]:
    """Return the moves of an alias, the current head last; empty if there is no such alias.

    Raises:
        StoreCorrupt: the alias's file is damaged.
    """
    path = layout.alias(store, name)
    if not path.exists():
        return []
    told = read_sealed(path, required=True)
    try:
        moves = [Move(**move) for move in told["moves"]]
    except (KeyError, TypeError):
        moves = []
    if told.get("name") != name or not moves or not all(is_run_id(move.head_id) for move in moves):
        raise StoreCorrupt(f"Expected: where the alias {name} points, in {path}. Got: something else.")
    return moves


def resolve(store: Path, name: str) -> str | None:
    """Return the id of the head that an alias points at; None if there is no such alias."""
    moves = history(store, name)
    return moves[-1].head_id if moves else None


def move(store: Path, name: str, head_id: str) -> None:
    """Point an alias at a head, atomically; the store's lock must be held.

    Raises:
        UsageError: the name is not allowed for an alias.
    """
    check_alias(name)
    moves = history(store, name)
    if moves and moves[-1].head_id == head_id:
        return
    path = layout.alias(store, name)
    if not path.parent.exists():
        path.parent.mkdir()
        fsync(store)
    moves = [*moves, Move(head_id, utc_now())][-MAX_HISTORY:]
    write_sealed(path, {"name": name, "moves": [asdict(one) for one in moves]})


def names(store: Path) -> list[str]:
    """Return the names of all aliases, sorted."""
    return [path.stem for path in listed(store / layout.ALIASES) if path.suffix == layout.JSON]
