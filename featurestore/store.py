"""FeatureStore: open, lock, commit, and read features at one version.

A commit replays a run's journal: features first, then labels, the catalog last. Each step takes effect once, however
often it is replayed. A run that died at any point is completed by replaying its journal again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import header, labels, layout
from featurestore.concurrency import side_by_side
from featurestore.errors import StoreError, UsageError
from featurestore.index import contains, present
from featurestore.journal import Staging, pending
from featurestore.reader import Reader
from featurestore.runs import new_run_id, time_of
from featurestore.schema import CATALOG, KEY_BYTES, LABELS, OK, keys_of, row_keys
from featurestore.spec import VIEWS_SUFFIX
from featurestore.storage import compaction
from featurestore.storage.base import location, storage_of
from featurestore.storage.files import exists, flush, is_file, listed, make_folder
from featurestore.storage.fragments import Replaced
from featurestore.storage.lock import locked
from featurestore.storage.table import Table

LOG = logging.getLogger("penult")


class Recovered(NamedTuple):
    """What ``recover`` found of dead runs: the ids of those that had rows, and the uris of the shards in work."""

    runs: list[str]
    begun: set[str]


class PlannedLabels(NamedTuple):
    """Label rows on their way into the table: staged fragments, and the rows that they replace."""

    staged: list[str]
    replaces: list[Replaced]


class FeatureStore(Reader):
    """A folder of Lance tables: the catalog of images, their labels, and one table per feature set.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(f"{folder}/my.store")  # what `penult embed` does
        ...     store.sets()  # after it: X, y, ids = store.features(split="train")
        []

    Raises:
        StoreNotFound: the folder is not a store.
        FormatError: a newer penult wrote it.
        StoreCorrupt: a table is not what was last committed.
    """

    @classmethod
    def create(cls, path: str | PurePath) -> FeatureStore:
        """Open the store at ``path``; create it if there is none.

        Raises:
            UsageError: the folder holds something other than a store.
        """
        path = location(path)
        if not (address := storage_of(path).uri(path)).isprintable() or re.match(r"[a-z][a-z0-9+]+:/[^/]", str(path)):
            raise UsageError(
                "Expected: --store, a folder here or a place in a bucket (s3://, gs://, az://), of a name in printable "
                f"UTF-8. Got: {address!r}."
            )
        if not exists(layout.header(path)):
            other = is_file(path) or any(map(_is_foreign, listed(path)))
            if other and not exists(layout.header(path)):
                raise UsageError(f"{path} is not a penult store and not an empty folder: name another with --store.")
            make_folder(path)
            with locked(path):
                cls._make(path)
        return cls(path)

    @staticmethod
    def _make(path: PurePath) -> None:
        if not exists(layout.header(path)):  # another run may have made it in the meantime
            make_folder(path / layout.FEATURES)
            tables = ((layout.CATALOG, CATALOG), (layout.LABELS, LABELS))
            list(side_by_side(lambda named: Table(path / named[0]).create(named[1]), tables))
            header.create(path)
            flush(path.parent)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store's lock: only one run may write at a time.

        Raises:
            StoreLocked: another run holds the lock.
            StoreError: the folder cannot be written to.
        """
        return locked(self.path)

    def recover(self) -> Recovered:
        """Commit the finished shards of dead runs. The lock must be held.

        A store of an older format version is upgraded to this one.
        """
        self.bring_up()
        recovered = Recovered([], set())
        dead = pending(self.path)
        for staging in dead:
            for path in staging.damaged():
                LOG.warning("%s is damaged: what it stands for is embedded anew.", path)
            if staging.feature_set is None:
                staging.remove()
                continue
            if staging.holds_rows():
                recovered.runs.append(staging.run_id)
            recovered.begun.update(staging.begun_images())
            self.commit(staging, whole=True)
        tables = (self.catalog, self.labels, *map(self.table, self.sets()))
        list(side_by_side(Table.note, tables))  # a run may have died between a commit, or a cleanup, and its note
        return recovered

    def commit(self, staging: Staging, whole: bool = False) -> None:
        """Commit a run's finished shards; repeating it changes nothing. The lock must be held.

        A fragment whose files are missing or have the wrong size is left out, and the next run embeds its images again.
        With ``whole``, digests are compared too.
        """
        feature_set = staging.feature_set
        if feature_set is None:
            raise StoreError(
                f"The journal {staging.folder} is gone: another run has kept what was finished, as this run's lock "
                f"was not honoured; run this again, and leave {self.path / 'lock'} alone."
            )
        features = self.table(feature_set)
        dropped = [pa.array([], pa.string())]
        with ThreadPoolExecutor(1) as beside:  # labels are staged and landed while the other tables wait for a bucket
            planned = beside.submit(self._stage_labels, staging.run_id, staging.label_rows)
            if not features.has_run(staging.run_id):
                features.commit(staging.run_id, self._new_fragments(feature_set, staging, whole))
            landed = beside.submit(lambda: self._land_labels(staging.run_id, planned.result()))
            staged = None
            if not self.catalog.has_run(staging.run_id):
                embedded = self._stored_of(staging, feature_set)
                staged = self.catalog.stage(self._backed(staging.catalog_rows(), embedded, dropped.append))
        landed.result()
        if staged is not None:
            replaced = staging.replaced_uris()
            stays = pc.is_in(replaced, value_set=pa.concat_arrays(dropped))  # rows that no new row replaces
            self.catalog.commit(staging.run_id, staged, [Replaced(replaced.filter(pc.invert(stays)))])
        tables = [features, self.labels, self.catalog]
        last_set = None if feature_set.endswith(VIEWS_SUFFIX) else feature_set
        self._tend(tables)
        header.remember(self.path, tables, last_set, staging.run_id)
        staging.remove()

    def new_run_id(self, kind: str) -> str:
        """Return an id that sorts after all earlier runs, whatever the clock says: run ids tell which row is newest."""
        told = header.read(self.path).get("last_run")
        if told is None:  # a store of an older penult
            told = max((max(batch.column(0).to_pylist()) for batch in self.labels.scan(["run_id"])), default="")
        named = (path.name for folder in (layout.RUNS, layout.JOURNALS) for path in listed(self.path / folder))
        return new_run_id(kind, after=max((name for name in (told, *named) if time_of(name)), default=None))

    def bring_up(self) -> None:
        """Upgrade a store of an older format version; the lock must be held. No data file is written."""
        header.bring_up(self.path)  # first, so that an older penult cannot write between the two steps
        self.labels.widen(LABELS)

    def commit_labels(self, run_id: str, rows: list[pa.RecordBatch]) -> None:
        """Add or replace label rows (schema LABELS, no empty batches). The lock must be held."""
        self._land_labels(run_id, self._stage_labels(run_id, lambda: iter(rows)))
        self._tend([self.labels])
        header.remember(self.path, [self.labels], last_run=run_id)

    def prefer(self, feature_set: str) -> None:
        """Make a set the one that is taken where none is named, as if it were written last. The lock must be held."""
        header.remember(self.path, [], feature_set)

    def remember(self) -> None:
        """Note the current state of all tables in the header. The lock must be held."""
        header.remember(self.path, [self.catalog, self.labels, *map(self.table, self.sets())])

    def _tend(self, tables: list[Table]) -> None:
        """Merge small fragments and drop old versions after a commit."""
        try:
            for table in tables:
                compaction.tend(table)
        except StoreError as error:  # the commit is done; compaction can wait
            LOG.warning("Not tidied up: %s", error)

    def _stage_labels(self, run_id: str, rows: Callable[[], Iterator[pa.RecordBatch]]) -> PlannedLabels | None:
        """Return label rows that are staged, and those that they replace; None if there are none to commit.

        Each call of ``rows`` starts a new pass, so rows can stream.
        """
        if self.labels.has_run(run_id) or next(rows(), None) is None:
            return None
        self.bring_up()
        return PlannedLabels(self.labels.stage(rows()), labels.replaced_by(rows()) if self.labels.count() else [])

    def _land_labels(self, run_id: str, planned: PlannedLabels | None) -> None:
        if planned is not None:
            self.labels.commit(run_id, planned.staged, planned.replaces)

    def _new_fragments(self, feature_set: str, staging: Staging, whole: bool) -> list[str]:
        """Return the shards' fragments with each view of a content once: two workers may have met the same bytes."""
        table = self.table(feature_set)
        fragments = []
        for fragment in (fragment for entry in staging.entries() for fragment in entry.fragments):
            if problem := table.staged_damage(fragment, whole):
                LOG.warning("%s: its images are embedded anew by the next run.", problem)
            else:
                fragments.append(fragment)
        keys = list(
            side_by_side(
                lambda f: np.concatenate(
                    [row_keys(*columns) for columns in table.staged_columns(f, ["sha256", "view"])]
                ),
                fragments,
            )
        )
        if not keys:
            return []
        lengths, every = list(map(len, keys)), np.concatenate(keys)
        del keys  # of many millions of rows only one copy is kept
        order = np.argsort(every, kind="stable")
        ordered = every[order]
        del every
        wanted = ~present(ordered, (row_keys(b.column(0), b.column(1)) for b in table.scan(["sha256", "view"])))
        wanted[1:] &= ordered[1:] != ordered[:-1]
        keep = np.zeros(len(order), bool)
        keep[order[wanted]] = True
        unique, start = [], 0
        for fragment, length in zip(fragments, lengths, strict=True):
            mask = keep[start : start + length]
            start += length
            unique += [fragment] if mask.all() else table.restage(fragment, pa.array(mask)) if mask.any() else []
        return unique

    def _stored_of(self, staging: Staging, feature_set: str) -> np.ndarray:
        """Return the contents of a journal's successful rows that the set holds: S32 (n,), sorted."""
        ok = (batch.column("sha256").filter(pc.equal(batch.column("status"), OK)) for batch in staging.catalog_rows())
        keys = np.sort(np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *map(keys_of, ok)]))
        return keys[present(keys, self.content_parts(feature_set))]

    @staticmethod
    def _backed(
        rows: Iterator[pa.RecordBatch], embedded: np.ndarray, drop: Callable[[pa.Array], None]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the catalog rows, except successful ones whose features are not in the set (their fragment was lost).

        The next run plans the images of the dropped rows again. ``drop`` is called with their uris.
        """
        for batch in rows:
            ok = np.asarray(pc.equal(batch.column("status"), OK))
            keep = ~ok
            keep[ok] = contains(embedded, keys_of(batch.column("sha256").filter(pa.array(ok))))
            if keep.all():
                yield batch  # without a copy
            else:
                drop(batch.column("uri").filter(pa.array(~keep)))
                yield batch.filter(pa.array(keep))


_BEFORE_FIRST_COMMIT = {layout.FEATURES, layout.CATALOG, layout.LABELS, layout.LOCK}


def _is_foreign(path: PurePath) -> bool:
    """Return whether a path does not belong to a store that is being created."""
    return path.name not in _BEFORE_FIRST_COMMIT and not re.fullmatch(
        rf"\.({re.escape(layout.HEADER)}|{layout.PROBE})\.\w+\.tmp", path.name
    )
