"""Read features with their labels, each row checked, at one version of the store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa

from featurestore import layout
from featurestore.concurrency import ahead_of
from featurestore.dataset import Dataset, LabelledContents, assemble, hex_ids, labelled_contents
from featurestore.errors import HeadError, StoreCorrupt, UsageError
from featurestore.index import located
from featurestore.listings import Listings
from featurestore.schema import intact, keys_of, vectors_of, widened
from featurestore.splits import Split, check_name
from featurestore.storage.table import Pin
from featurestore.vectors import StoredVectors

FEW_KEYS = 500  # up to so many are looked up by a filter
BATCH_ROWS = 2048  # of vectors stay in the CPU cache while they are checked and copied
CHECKERS = 2  # threads that check batches while the caller takes others: they keep up with Lance
AHEAD = 4  # batches that are read and not yet taken


class Reader(Listings):
    """The features of an open store; see ``FeatureStore``."""

    def features(
        self, feature_set: str | None = None, split: str | None = None, label_set: str = "default"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the labelled features of one split (or of all), one row per unique content.

        Returns:
            X: float32 (n, d); y: str (n,), labels; ids: str (n,), sha256 in hex.

        Raises:
            UsageError: there is no split of this name; see ``dataset`` for other errors.
        """
        if split is not None:
            check_name(split)
        data = self.dataset(feature_set, label_set)
        part = data if split is None else data.part(split)
        return part.X, part.y, part.ids

    def dataset(
        self,
        feature_set: str | None = None,
        label_set: str = "default",
        split: Split = Split(),
        memory_limit: int | None = None,
    ) -> Dataset:
        """Return all labelled features of a set with their splits.

        Args:
            feature_set: its name or a unique prefix; None, the set written last.
            label_set: which labels.
            split: how to split the contents that the corpus does not split itself.
            memory_limit: bytes; vectors that would take more than half of it stay in the store, see ``Dataset.stored``.

        Raises:
            HeadError: no labelled image has features in this set.
            StoreCorrupt: a checksum does not match.
        """
        name = self.resolve(feature_set)
        contents = self.labelled(label_set)
        stored = None
        if memory_limit is not None:
            stored, found = self.stored(name, contents.keys, memory_limit)
            if found.sum() * stored.width * 4 <= memory_limit / 2:
                stored = None
        if stored is None:
            X, found = self.vectors(name, contents.keys)
        else:
            X = np.empty((len(found), 0), np.float32)
        if not found.all():  # a damaged row can look like an image that was never embedded: check the rows not read yet
            unread = f"view != {self.spec(name).first_view}" if len(contents.keys) > FEW_KEYS else None
            for _ in self.batches(name, unread):
                pass
        if not found.any():
            raise HeadError(
                f"No labelled image has features in {name} (label set {label_set!r}): embed a folder with one "
                "sub-folder per class, or import labels with `penult label FILE`."
            )
        return assemble(contents, X, found, self.spec(name), split, stored)

    def augmented(self, train: Dataset, views: int, views_set: str | None = None) -> Dataset:
        """Return training rows, followed by their stored augmented views.

        Args:
            train: rows of a dataset's training split only.
            views: how many views of each image.
            views_set: the set that holds the views; needed if there are several.

        Raises:
            UsageError: there is no such set, there are several and none is named, or views of these images are missing.
        """
        sets = self.views_sets(train.feature_set)
        if not sets:
            raise UsageError(f"{train.feature_set} has no views: `penult embed SOURCE --views {views}` makes some.")
        if views_set is None and len(sets) > 1:
            raise UsageError(f"{train.feature_set} has views of several kinds: name one with --views-set, of {sets}.")
        name = sets[0] if views_set is None else views_set
        if name not in sets:
            raise UsageError(f"Expected: --views-set, one of {sets}. Got: {name!r}.")
        X, rows = self.views(name, train.keys, views)
        if len(X) < views * len(train):
            raise UsageError(
                f"{name} holds {len(X):,} of the {views * len(train):,} views that training needs: run "
                f"`penult embed SOURCE --views {views}` over the whole corpus first."
            )
        return train.with_views(X, rows)

    def labelled(self, label_set: str = "default") -> LabelledContents:
        """Return the unique contents that have a label, without their vectors."""
        with self.whole() as at:  # no variable holds these large tables: they are freed early
            return labelled_contents(
                self.catalog.read(["uri", "sha256"], "status = 'ok'", at.get(layout.CATALOG)),
                self.label_rows(label_set, at.get(layout.LABELS)),
            )

    def vectors(self, feature_set: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of some contents, checked against their checksums.

        Args:
            feature_set: its full name.
            keys: S32 (n,), sorted and unique.

        Returns:
            X: float32 (n, d); found: bool (n,). Rows of X that were not found hold zeros.
        """
        condition = f"view = {self.spec(feature_set).first_view}"
        if len(keys) <= FEW_KEYS:
            listed = ", ".join(f"X'{key}'" for key in hex_ids(keys))
            condition += f" AND sha256 IN ({listed})" if listed else " AND false"
        return self._in_order(feature_set, keys, 1, condition)

    def stored(self, feature_set: str, keys: np.ndarray, memory_limit: int) -> tuple[StoredVectors, np.ndarray]:
        """Return what ``vectors`` does, but leave the vectors in the store; found: bool (n,)."""
        spec, pin = self.spec(feature_set), Pin(self.table(feature_set))
        condition = f"view = {spec.first_view}"
        numbers, found = [np.empty(0, np.int64)], np.zeros(len(keys), bool)
        for batch in self.table(feature_set).scan(["sha256"], condition, pin.version):
            at, wanted = located(keys, keys_of(batch.column(0)))
            numbers.append(np.where(wanted, at, -1))
            found[numbers[-1][numbers[-1] >= 0]] = True
        scan = partial(self.batches, feature_set, condition, pin=pin)
        return StoredVectors(scan, np.concatenate(numbers), len(keys), spec.width, memory_limit), found

    def views(self, feature_set: str, keys: np.ndarray, views: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored augmented views of some contents, checked against their checksums.

        Args:
            feature_set: the full name of a set of views.
            keys: S32 (n,), sorted and unique.
            views: how many views of each content.

        Returns:
            X: float32 (m, d), m up to n * views, ordered by content and view; rows: int64 (m,), indices into keys.
        """
        X, found = self._in_order(feature_set, keys, views, f"view <= {int(views)}")
        return X if found.all() else X[found], np.flatnonzero(found) // views

    def _in_order(
        self, feature_set: str, keys: np.ndarray, views: int, condition: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the first views of contents, float32 (n * views, d), and which were found, bool (n * views,)."""
        spec, few = self.spec(feature_set), len(keys) <= FEW_KEYS and views == 1
        X, found = np.zeros((len(keys) * views, spec.width), np.float32), np.zeros(len(keys) * views, bool)
        for batch in self.batches(feature_set, condition, few=few):
            at, wanted = located(keys, keys_of(batch.column("sha256")))
            view = batch.column("view").to_numpy() - spec.first_view
            at, wanted, vectors = at * views + view, wanted & (view >= 0), vectors_of(batch.column("vector"))
            if not wanted.all():
                at, vectors = at[wanted], vectors[wanted]
            for rows, wide in widened(vectors):
                X[at[rows]] = wide
            found[at] = True
        return X, found

    def batches(
        self,
        feature_set: str,
        condition: str | None = None,
        batch_rows: int = BATCH_ROWS,
        pin: Pin | None = None,
        few: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a feature set (sha256, view, vector, checksum) that may not fit in memory, and check each row.

        ``pin`` keeps one version of the set available for several passes. ``few``: the condition holds for few rows.

        Raises:
            StoreCorrupt: a row's checksum does not match.
        """
        table = self.table(feature_set)

        def checked(batch: pa.RecordBatch) -> pa.RecordBatch:
            wrong = np.flatnonzero(~intact(batch))
            if len(wrong):
                key = batch.column("sha256")[int(wrong[0])].as_py().hex()
                raise StoreCorrupt(
                    f"Expected in {table.path}: intact rows. Got: a wrong checksum for image {key}; "
                    "`penult doctor` embeds what is damaged anew."
                )
            return batch

        columns, version = ["sha256", "view", "vector", "checksum"], pin.version if pin else None
        with ThreadPoolExecutor(CHECKERS) as pool:
            yield from ahead_of(pool, checked, table.scan(columns, condition, version, batch_rows, few), AHEAD)

    def to_arrow(self, feature_set: str | None = None) -> pa.Table:
        """Return a whole feature set as an Arrow table, each row checked."""
        name = self.resolve(feature_set)
        schema = pa.schema([f for f in self.table(name).schema if f.name != "run_id"])
        return pa.Table.from_batches(self.batches(name), schema)
