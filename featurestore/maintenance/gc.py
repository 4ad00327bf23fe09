"""Remove what no run needs any more: old versions, files of dead runs, the oldest results of comparisons."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from featurestore import layout
from featurestore.storage import compaction
from featurestore.storage.base import storage_of
from featurestore.storage.files import delete, exists, is_folder, is_link, listed
from featurestore.storage.table import Table

MAX_RESULTS = 20_000  # kept outcomes of comparisons
MAX_HEADS = 10  # of their winners
LOG = logging.getLogger("penult")


def collect(store: PurePath, tables: Sequence[Table], older_than: float) -> dict[str, int]:
    """Remove what no run needs any more; the store's lock must be held and no journal be pending.

    Args:
        store: its folder.
        tables: all tables of the store.
        older_than: seconds; files that a run without the lock may still be writing, and files that `penult doctor` put
            aside, are removed if nothing has been written to them for this long.

    Returns:
        Bytes freed, by kind.
    """
    freed = {"old versions": 0, "unfinished": 0, "put aside": 0, "kept outcomes": 0}
    for table in tables:
        compaction.tend(table)
        if (size := table.cleanup(staged_too=True)) is None:
            LOG.warning("%s is being read: its old versions stay, until the next `penult gc`.", table.path)
        freed["old versions"] += size or 0
    before = time.time() - older_than
    for path in _unfinished(store):
        freed["unfinished"] += _removed(path, before)
    for path in _children(store / layout.ASIDE):
        freed["put aside"] += _removed(path, before)
    kept = [
        path for folder in _children(store / layout.RESULTS) for path in _children(folder) if path.suffix == layout.JSON
    ]
    for paths, most in ((kept, MAX_RESULTS), (_children(layout.kept_heads(store)), MAX_HEADS)):
        for path in sorted(paths, key=_last_touched, reverse=True)[most:]:
            freed["kept outcomes"] += _removed(path, time.time())
    return freed


def _unfinished(store: PurePath) -> Iterator[PurePath]:
    """Yield temporary files of penult and Lance, half-made sets, runs without a record, fine-tuning checkpoints."""
    folders = [store, *_folders(store)]
    tables = [folder for folder in folders if folder.suffix == layout.TABLE]
    yield from (path for folder in folders for path in listed(folder) if path.match(".*.tmp"))
    of_lance = (path for table in tables for folder in listed(table) for path in listed(folder))
    yield from (path for path in of_lance if path.name.startswith(".tmp") or "#" in path.name)
    yield from (path for path in tables if path.parent == store / layout.FEATURES and Table(path).unborn)
    yield from (run for run in _children(store / layout.RUNS) if not exists(run / layout.RECORD))
    yield from _children(store / layout.FINETUNINGS)


def _folders(store: PurePath) -> Iterator[PurePath]:
    """Yield the folders that penult itself writes files to."""
    folders = [path for name in (layout.RUNS, layout.FEATURES, layout.RESULTS) for path in _children(store / name)]
    folders += _children(layout.kept_heads(store))
    own = (layout.BACKBONES, layout.CATALOG, layout.LABELS, layout.ALIASES, layout.NIGHTS)
    folders += [*(store / name for name in own), layout.models(store)]
    yield from (path for path in folders if is_folder(path) and not is_link(path))


def _children(folder: PurePath) -> list[PurePath]:
    """Return the paths in a folder of the store; none if the folder is a link, as its target is not the store's."""
    return [] if is_link(folder) else listed(folder)


def _removed(path: PurePath, before: float) -> int:
    """Remove a file or folder that was last written to before a time; return the bytes freed."""
    storage = storage_of(path)
    files = [] if is_link(path) else [found for _, found in storage.walk(path)]
    own = storage.stat(path, follow=False)  # after the files: a file that a run renames meanwhile changes its folder
    if own is None or max(found.modified_ns for found in (own, *files)) >= before * 1e9:
        return 0
    delete(path)
    return sum(found.size for found in files) if own.kind == "folder" else own.size


def _last_touched(path: PurePath) -> float:
    """Return when a file was last written to, in ns; infinity if it has just gone, as a run is at work there."""
    found = storage_of(path).stat(path, follow=False)
    return found.modified_ns if found else math.inf
