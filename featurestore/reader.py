"""Read features with their labels, each row checked, at one version of the store."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from featurestore import layout
from featurestore.dataset import Dataset, LabelledContents, assemble, hex_ids, labelled_contents
from featurestore.errors import HeadError, StoreCorrupt, UsageError
from featurestore.index import contains
from featurestore.listings import Listings
from featurestore.schema import intact, keys_of, vectors_of
from featurestore.splits import Split, check_name
from featurestore.storage.table import Pin
from featurestore.vectors import StoredVectors

FEW_KEYS = 500  # up to so many are looked up by a filter
BATCH_ROWS = 2048  # of vectors stay in the CPU cache while they are checked and copied


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
        width = self.spec(feature_set).width
        X, found = np.zeros((len(keys), width), np.float32), np.zeros(len(keys), bool)
        condition = f"view = {self.spec(feature_set).first_view}"
        if len(keys) <= FEW_KEYS:
            listed = ", ".join(f"X'{key}'" for key in hex_ids(keys))
            condition += f" AND sha256 IN ({listed})" if listed else " AND false"
        for batch in self.batches(feature_set, condition, few=len(keys) <= FEW_KEYS):
            batch_keys = keys_of(batch.column("sha256"))
            at = np.minimum(np.searchsorted(keys, batch_keys), max(len(keys) - 1, 0))
            wanted = keys[at] == batch_keys if len(keys) else np.zeros(len(batch_keys), bool)
            rows = vectors_of(batch.column("vector"))
            if wanted.all():
                X[at] = rows
            else:
                X[at[wanted]] = rows[wanted]
            found[at[wanted]] = True
        return X, found

    def stored(self, feature_set: str, keys: np.ndarray, memory_limit: int) -> tuple[StoredVectors, np.ndarray]:
        """Return what ``vectors`` does, but leave the vectors in the store; found: bool (n,)."""
        spec, pin = self.spec(feature_set), Pin(self.table(feature_set))
        condition = f"view = {spec.first_view}"
        numbers, found = [np.empty(0, np.int64)], np.zeros(len(keys), bool)
        for batch in self.table(feature_set).scan(["sha256"], condition, pin.version):
            batch_keys = keys_of(batch.column(0))
            numbers.append(np.where(contains(keys, batch_keys), np.searchsorted(keys, batch_keys), -1))
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
        parts, rows, numbers = [np.empty((0, self.spec(feature_set).width), np.float32)], [], []
        for batch in self.batches(feature_set, f"view <= {int(views)}"):
            batch_keys = keys_of(batch.column("sha256"))
            at = np.searchsorted(keys, batch_keys)
            wanted = contains(keys, batch_keys)
            parts.append(vectors_of(batch.column("vector"))[wanted].astype(np.float32))
            rows.append(at[wanted])
            numbers.append(batch.column("view").to_numpy()[wanted])
        X, at = np.concatenate(parts), np.concatenate([*rows, np.empty(0, np.int64)])
        order = np.lexsort((np.concatenate([*numbers, np.empty(0, np.int16)]), at))
        return X[order], at[order]

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
        columns, version = ["sha256", "view", "vector", "checksum"], pin.version if pin else None
        for batch in table.scan(columns, condition, version, batch_rows, few):
            wrong = np.flatnonzero(~intact(batch))
            if len(wrong):
                key = batch.column("sha256")[int(wrong[0])].as_py().hex()
                raise StoreCorrupt(
                    f"Expected in {table.path}: intact rows. Got: a wrong checksum for image {key}; "
                    "`penult doctor` embeds what is damaged anew."
                )
            yield batch

    def to_arrow(self, feature_set: str | None = None) -> pa.Table:
        """Return a whole feature set as an Arrow table, each row checked."""
        name = self.resolve(feature_set)
        schema = pa.schema([f for f in self.table(name).schema if f.name != "run_id"])
        return pa.Table.from_batches(self.batches(name), schema)
