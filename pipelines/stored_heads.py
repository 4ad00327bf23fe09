"""Find, load and promote the heads of a store by the names that people use: an id, a part of it, an alias, or none."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any, Unpack

from featurestore import aliases, layout
from featurestore.errors import HeadError, StoreCorrupt, StoreError, StoreNotFound
from featurestore.runs import is_run_id
from featurestore.storage.files import is_file, is_folder, listed
from featurestore.store import FeatureStore
from heads import artifact
from heads.base import Head
from pipelines.run_kinds import head_kinds

CANDIDATES_SHOWN = 5
UNUSABLE = (StoreError, HeadError)  # what head_of raises

Say = Callable[[str], None]


def find_head(store: FeatureStore, name: str | None, kinds: Collection[str] = (), say: Say = lambda _: None) -> str:
    """Return the full id of a head, given the id, how it begins (with a date) or ends, or an alias.

    Args:
        store: the store that holds the head.
        name: the name that the user gave. None takes the head that the alias ``champion`` points at, or the newest
            head if there is no champion.
        kinds: kinds of run among which the newest head is looked for; empty for all kinds that make heads.
        say: called with a line that names the head if ``name`` is None.

    Raises:
        StoreNotFound: no head matches, or several do; the message names some.
        StoreCorrupt: an alias is damaged.
    """
    if name is None:
        champion = aliases.resolve(store.path, aliases.CHAMPION)
        head_id = champion or newest_head(store, kinds)
        say(f"Head: {head_id}, {'the champion' if champion else 'the newest'}.")
        return head_id
    if is_run_id(name) and is_folder(store.run_folder(name)):
        return name
    if name in aliases.names(store.path):
        return str(aliases.resolve(store.path, name))
    folders = listed(store.path / layout.RUNS)
    heads = [f.name for f in folders if is_file(f / artifact.DESCRIPTION) and is_file(f / layout.RECORD)]
    matches = [head for head in heads if name and (head.startswith(name) or head.endswith(name))]
    if len(matches) == 1:
        return matches[0]
    shown = ", ".join((matches or heads)[: -CANDIDATES_SHOWN - 1 : -1]) or "none"
    found = f"{len(matches)} of them, the newest: {shown}" if matches else f"no such head; the newest: {shown}"
    raise StoreNotFound(f"Expected: one head's id, its beginning or its ending, or an alias. Got: {name!r}, {found}.")


def newest_head(store: FeatureStore, kinds: Collection[str] = ()) -> str:
    """Return the id of the newest head made by a run of one of these kinds; by default, of all kinds that make heads.

    Raises:
        StoreNotFound: the store has no such head.
    """
    heads = [run.run_id for run in store.runs() if run.kind in (kinds or head_kinds())]
    if not heads:
        raise StoreNotFound(f"{store.path} has no head yet: run `penult compare --store {store.path}` first.")
    return heads[-1]


def head_of(store: FeatureStore, head_id: str) -> tuple[Head, dict[str, Any]]:
    """Load a head and its metadata, which has the ``feature_set`` it was trained on and that set's ``fingerprint``.

    Raises:
        StoreNotFound, StoreCorrupt, FormatError, HeadError: the head is missing, damaged or cannot be loaded.
        SpecMismatch: the feature set of that name has another fingerprint now.
    """
    folder = store.run_folder(head_id)
    head, meta = artifact.load(folder)
    if missing := {"feature_set", "fingerprint"} - meta.keys():
        raise StoreCorrupt(f"Expected: the head in {folder} to tell its {' and '.join(sorted(missing))}. Got: nothing.")
    store.require(meta["feature_set"], meta["fingerprint"])
    return head, meta


def promote(
    store: FeatureStore, name: str | None, alias: str = aliases.CHAMPION, **why: Unpack[aliases.Why]
) -> dict[str, Any]:
    """Point an alias at a head, atomically; return the object that ``penult promote --json`` prints.

    Promoting the head that is in use does nothing. Nor does repeating a night that has promoted this head before: the
    object then names the head that people have put in use since.

    Args:
        store: the store that holds the head.
        name: the head's name, see ``find_head``; None takes the newest head.
        alias: the alias to move; it is made if there is none of this name.
        why: what is noted, see ``aliases.Why``; by default the head's own test score, and this user's login name.

    Raises:
        UsageError: ``alias`` is not a valid name.
        StoreNotFound, StoreCorrupt, FormatError, HeadError, SpecMismatch: the head cannot be found or loaded.
        StoreLocked: another run holds the store's lock.
    """
    aliases.check_alias(alias)
    head_id = newest_head(store) if name is None else find_head(store, name)
    with store.lock():
        _, meta = head_of(store, head_id)  # raises for a head that could not be used
        before = aliases.resolve(store.path, alias)
        aliases.move(store.path, alias, head_id, **_noted(why, meta))
        now = aliases.resolve(store.path, alias)
    return {"alias": alias, "head_id": now, "before": before}


def rollback(store: FeatureStore, alias: str = aliases.CHAMPION, reason: str = "") -> dict[str, Any]:
    """Undo the last move of an alias, atomically; return the object that ``penult rollback --json`` prints.

    After A, B, C it is B, then A. This is noted as one more move.

    Args:
        store: the store that holds the heads.
        alias: the alias to move.
        reason: noted, besides who did it, and the score that the head had.

    Raises:
        UsageError: ``alias`` is not a valid name.
        StoreNotFound: there is no head to go back to.
        HeadError: the head before cannot be found or loaded; the message names the next one that can.
        StoreCorrupt: the alias's file is damaged.
        StoreLocked: another run holds the store's lock.
    """
    aliases.check_alias(alias)
    with store.lock():
        standing = aliases.standing(store.path, alias)
        if not standing:
            raise StoreNotFound(f"{alias} points at no head yet: `penult promote` puts one in use.")
        if len(standing) == 1:
            raise StoreNotFound(
                f"{alias} is {standing[0].head_id}, and no head was before it: `penult promote HEAD` takes another one."
            )
        *earlier, back_to, now = standing
        try:
            _, meta = head_of(store, back_to.head_id)
        except UNUSABLE as error:
            others = [move.head_id for move in reversed(earlier) if move.head_id != now.head_id]
            take = next((head_id for head_id in others if _is_usable(store, head_id)), "HEAD")
            raise HeadError(
                f"{alias} stays {now.head_id}, as the head before it cannot be used: {str(error).rstrip('.')}; "
                f"`penult promote {take}` takes {'the one before that' if take in others else 'another'}."
            ) from error
        aliases.undo(store.path, alias, **_noted({"reason": reason, "score": back_to.score}, meta))
    return {"alias": alias, "head_id": back_to.head_id, "before": now.head_id}


def champion(store: FeatureStore, alias: str = aliases.CHAMPION) -> dict[str, Any]:
    """Return the object that ``penult champion --json`` prints: where an alias points and has pointed, oldest first.

    Raises:
        UsageError: ``alias`` is not a valid name.
        StoreCorrupt: the alias's file is damaged.
    """
    aliases.check_alias(alias)
    history = [asdict(move) for move in aliases.history(store.path, alias)]
    rows = [{"head_id": row.pop("head_id"), "at": row.pop("moved"), **row} for row in history]
    return {"champion": rows[-1]["head_id"] if rows else None, "history": rows}


def _noted(why: aliases.Why, meta: Mapping[str, Any]) -> aliases.Why:
    """Return what a move notes: what was given, else the score in the head's metadata and this user's login name."""
    score = why.get("score")
    return {**why, "score": _own_score(meta) if score is None else score, "by": why.get("by") or _login()}


def _own_score(meta: Mapping[str, Any]) -> float | None:
    """Return the top-1 accuracy on test images that a head's metadata tells; None if it tells none."""
    metrics = meta.get("metrics")
    score = metrics.get("top1") if isinstance(metrics, dict) else None
    return score if isinstance(score, float | int) else None


def _login() -> str | None:
    """Return this user's login name; None for a user id without a name, as containers have."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _is_usable(store: FeatureStore, head_id: str) -> bool:
    try:
        head_of(store, head_id)
    except UNUSABLE:
        return False
    return True
