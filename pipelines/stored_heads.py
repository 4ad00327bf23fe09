"""Find, load and promote the heads of a store by the names that people use: an id, a part of it, an alias, or none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from featurestore import aliases, layout
from featurestore.errors import StoreCorrupt, StoreNotFound
from featurestore.runs import is_run_id
from featurestore.storage.files import is_file, is_folder, listed
from featurestore.store import FeatureStore
from heads import artifact
from heads.base import Head
from pipelines.run_kinds import head_kinds

CANDIDATES_SHOWN = 5

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


def promote(store: FeatureStore, name: str | None, alias: str = aliases.CHAMPION) -> dict[str, Any]:
    """Point an alias at a head, atomically; return the object that ``penult promote --json`` prints.

    Args:
        store: the store that holds the head.
        name: the head's name, see ``find_head``; None takes the newest head.
        alias: the alias to move; it is made if there is none of this name.

    Raises:
        UsageError: ``alias`` is not a valid name.
        StoreNotFound, StoreCorrupt, FormatError, HeadError, SpecMismatch: the head cannot be found or loaded.
        StoreLocked: another run holds the store's lock.
    """
    aliases.check_alias(alias)
    head_id = newest_head(store) if name is None else find_head(store, name)
    head_of(store, head_id)  # raises for a head that could not be used
    with store.lock():
        before = aliases.resolve(store.path, alias)
        aliases.move(store.path, alias, head_id)
    return {"alias": alias, "head_id": head_id, "before": before}
