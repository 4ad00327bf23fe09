"""Aliases: named pointers to heads, each with the history of the heads that it pointed at."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import PurePath

from featurestore import layout
from featurestore.errors import StoreCorrupt, UsageError
from featurestore.runs import is_run_id, utc_now
from featurestore.storage.files import exists, listed, make_folder, read_sealed, replace_sealed, token_of

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


def history(store: PurePath, name: str) -> list[Move]:
    """Return the moves of an alias, the current head last; empty if there is no such alias.

    Raises:
        StoreCorrupt: the alias's file is damaged.
    """
    path = layout.alias(store, name)
    if not exists(path):
        return []
    told = read_sealed(path, required=True)
    try:
        moves = [Move(**move) for move in told["moves"]]
    except (KeyError, TypeError):
        moves = []
    if told.get("name") != name or not moves or not all(is_run_id(move.head_id) for move in moves):
        raise StoreCorrupt(f"Expected: where the alias {name} points, in {path}. Got: something else.")
    return moves


def resolve(store: PurePath, name: str) -> str | None:
    """Return the id of the head that an alias points at; None if there is no such alias."""
    moves = history(store, name)
    return moves[-1].head_id if moves else None


def move(store: PurePath, name: str, head_id: str) -> None:
    """Point an alias at a head, atomically; the store's lock must be held.

    Raises:
        UsageError: the name is not allowed for an alias.
    """
    check_alias(name)
    path = layout.alias(store, name)
    token, moves = token_of(path), history(store, name)
    if moves and moves[-1].head_id == head_id:
        return
    make_folder(path.parent)
    moves = [*moves, Move(head_id, utc_now())][-MAX_HISTORY:]
    replace_sealed(path, {"name": name, "moves": [asdict(one) for one in moves]}, token)


def names(store: PurePath) -> list[str]:
    """Return the names of all aliases, sorted."""
    return [path.stem for path in listed(store / layout.ALIASES) if path.suffix == layout.JSON]
