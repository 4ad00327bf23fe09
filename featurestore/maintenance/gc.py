"""Remove what no run needs any more: old versions, files of dead runs, the oldest cached results of fits."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurestore import layout
from featurestore.storage import compaction
from featurestore.storage.files import listed
from featurestore.storage.table import Table

MAX_RESULTS = 20_000  # kept outcomes of comparisons
LOG = logging.getLogger("penult")


def collect(store: Path, tables: Sequence[Table], older_than: float) -> dict[str, int]:
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
    outcomes = sorted(kept, key=_last_touched, reverse=True)
    for path in outcomes[MAX_RESULTS:]:
        freed["kept outcomes"] += _removed(path, time.time())
    return freed


def _unfinished(store: Path) -> Iterator[Path]:
    """Yield temporary files of penult and Lance, half-made sets, runs without a record, fine-tuning checkpoints."""
    folders = [store, *_folders(store)]
    tables = [folder for folder in folders if folder.suffix == layout.TABLE]
    yield from (path for folder in folders for path in folder.glob(".*.tmp"))
    yield from (path for table in tables for name in (".tmp*", "*#*") for path in table.glob(f"*/{name}"))
    yield from (path for path in tables if path.parent == store / layout.FEATURES and Table(path).unborn)
    yield from (run for run in _children(store / layout.RUNS) if not (run / layout.RECORD).exists())
    yield from _children(store / layout.FINETUNINGS)


def _folders(store: Path) -> Iterator[Path]:
    """Yield the folders that penult itself writes files to."""
    folders = [path for name in (layout.RUNS, layout.FEATURES, layout.RESULTS) for path in _children(store / name)]
    folders += [store / name for name in (layout.BACKBONES, layout.CATALOG, layout.LABELS, layout.ALIASES)]
    yield from (path for path in folders if path.is_dir() and not path.is_symlink())


def _children(folder: Path) -> list[Path]:
    """Return the paths in a folder of the store; none if the folder is a link, as its target is not the store's."""
    return [] if folder.is_symlink() else listed(folder)


def _removed(path: Path, before: float) -> int:
    """Remove a file or folder that was last written to before a time; return the bytes freed."""
    whole = path.is_dir() and not path.is_symlink()
    files = [path for path in path.rglob("*") if path.is_symlink() or not path.is_dir()] if whole else [path]
    if max(map(_last_touched, [path, *files])) >= before:
        return 0
    size = sum(file.lstat().st_size for file in files)
    if whole:
        shutil.rmtree(path)
    else:
        path.unlink()
    return size


def _last_touched(path: Path) -> float:
    """Return when a file was last written to; infinity if it has just gone, as a run is at work there."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf
