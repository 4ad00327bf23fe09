"""Aliases: named pointers to heads, each with the history of the heads that it pointed at."""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import PurePath
from typing import Any, TypedDict, Unpack, get_type_hints

from featurestore import layout
from featurestore.errors import StoreCorrupt, UsageError
from featurestore.runs import is_run_id, utc_now
from featurestore.storage.files import exists, listed, make_folder, read_sealed, replace_sealed, token_of

CHAMPION = "champion"  # the alias that is used if no head is named
MAX_HISTORY = 1000
MAX_WORDS = 1000  # characters of a reason; a history of such is read within its limit
UNSHOWN = "\N{REPLACEMENT CHARACTER}"


class Why(TypedDict, total=False):
    """What a move notes beside the head; all of it may be left out.

    ``date`` is the logical date, as "2026-11-01", and ``run_id`` the night, of a scheduled retrain. ``score`` is the
    head's on test images, a share from 0 to 1. ``by`` is who moved the alias.
    """

    date: str | None
    run_id: str | None
    reason: str
    score: float | None
    by: str | None


@dataclass(frozen=True)
class Move:
    """A head that an alias has pointed at, since when (UTC, ISO 8601), and why; see ``Why``.

    An ``undo`` went back to the head of the move before the one that it undid.
    """

    head_id: str
    moved: str
    date: str | None = None
    run_id: str | None = None
    reason: str = ""
    score: float | int | None = None
    by: str | None = None
    undo: bool = False


NEEDED = {field.name for field in fields(Move) if field.default is MISSING}  # all that the first version wrote
TYPES = get_type_hints(Move)


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
    return [Move(**{key: move[key] for key in TYPES.keys() & move.keys()}) for move in _told(store, name)["moves"]]


def standing(store: PurePath, name: str) -> list[Move]:
    """Return the moves of an alias that are not undone, the one to the current head last.

    Raises:
        StoreCorrupt: the alias's file is damaged.
    """
    stack: list[Move] = []
    for move in history(store, name):
        if not move.undo:
            stack.append(move)
        else:
            stack = stack[:-1] or [move]  # what it went back to may be longer ago than the history
    return stack


def resolve(store: PurePath, name: str) -> str | None:
    """Return the id of the head that an alias points at; None if there is no such alias."""
    moves = history(store, name)
    return moves[-1].head_id if moves else None


def move(store: PurePath, name: str, head_id: str, **why: Unpack[Why]) -> None:
    """Point an alias at a head, atomically; the store's lock must be held.

    Nothing is written if it points there, or if the same night has moved it there before: so a night may be repeated,
    and what people have done since stays.

    Raises:
        UsageError: the name is not allowed for an alias.
        StoreCorrupt: the alias's file is damaged.
    """
    check_alias(name)
    moves, night = history(store, name), why.get("run_id")
    repeated = any(night is not None and (one.run_id, one.head_id) == (night, head_id) for one in moves)
    if repeated or (moves and moves[-1].head_id == head_id):
        return
    _append(store, name, Move(head_id, utc_now(), **why))


def undo(store: PurePath, name: str, **why: Unpack[Why]) -> None:
    """Point an alias at the head before the current one, atomically; the store's lock must be held.

    There must be two moves that are not undone at least, see ``standing``.
    """
    back_to = standing(store, name)[-2].head_id
    _append(store, name, Move(back_to, utc_now(), **why, undo=True))


def names(store: PurePath) -> list[str]:
    """Return the names of all aliases, sorted."""
    return [path.stem for path in listed(store / layout.ALIASES) if path.suffix == layout.JSON]


def _append(store: PurePath, name: str, last: Move) -> None:
    """Write one more move; those before stay as they are, with what a newer penult has noted."""
    path = layout.alias(store, name)
    token, told = token_of(path), _told(store, name)
    make_folder(path.parent)
    words = {"reason": _in_one_line(last.reason), "by": last.by and _in_one_line(last.by)}
    replace_sealed(path, told | {"moves": [*told["moves"], asdict(last) | words][-MAX_HISTORY:]}, token)


def _told(store: PurePath, name: str) -> dict[str, Any]:
    """Return what the file of an alias tells, checked; without a file, that there were no moves."""
    path = layout.alias(store, name)
    if not exists(path):
        return {"name": name, "moves": []}
    told = read_sealed(path, required=True)
    moves = told.get("moves")
    if told.get("name") != name or not isinstance(moves, list) or not moves or not all(map(_is_move, moves)):
        raise StoreCorrupt(f"Expected: where the alias {name} points, in {path}. Got: something else.")
    return told


def _is_move(told: Any) -> bool:
    """Return whether JSON tells a move; a newer penult may tell more of it."""
    if not isinstance(told, dict) or NEEDED - told.keys() or not is_run_id(told["head_id"]):
        return False
    return all(isinstance(told[name], kind) for name, kind in TYPES.items() if name in told)


def _in_one_line(words: str) -> str:
    """Return words as one line that a terminal and UTF-8 can take, cut where they are too long to be kept."""
    line = "".join(letter if letter.isprintable() else UNSHOWN for letter in " ".join(words.split()))
    return line if len(line) <= MAX_WORDS else f"{line[: MAX_WORDS - 1]}…"
