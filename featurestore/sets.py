"""What lies in a store: its tables, its feature sets and the contents they hold, the records of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath

import numpy as np
import pyarrow.compute as pc

from featurestore import header, layout
from featurestore.errors import SpecMismatch, StoreCorrupt, StoreNotFound
from featurestore.index import Known, contains, pair_digests, text_digests
from featurestore.runs import RunRecord
from featurestore.schema import CATALOG, LABELS, LABELS_V1, OK, features_schema, keys_of, spec_of
from featurestore.spec import VIEWS_SUFFIX, FeatureSpec
from featurestore.storage.base import location, storage_of
from featurestore.storage.files import exists, listed
from featurestore.storage.table import Table

EMBEDDED, FAILED_BEFORE, NOT_IN_SET = 2, 3, 4  # states of a known image, for Known.lookup


RUNS_AT_ONCE = 16  # records: a bucket answers slowly


class FeatureSets:
    """The tables of an open store, and what its feature sets hold; see ``FeatureStore``."""

    def __init__(self, path: str | PurePath) -> None:
        self.path = location(path)
        self.catalog = Table(self.path / layout.CATALOG)
        self.labels = Table(self.path / layout.LABELS)
        with self.catalog.lease(), self.labels.lease():
            header.check(self.path)
            self.catalog.check_schema(CATALOG)
            self.labels.check_schema(LABELS if self._knows_sources() else LABELS_V1)

    @property
    def address(self) -> str:
        """Where the store is, for another process: absolute."""
        return storage_of(self.path).uri(self.path)

    def sets(self) -> list[str]:
        """Return the names of the feature sets, sorted."""
        paths = (path for path in listed(self.path / layout.FEATURES) if path.suffix == layout.TABLE)
        return [path.stem for path in paths if Table(path).exists()]  # a run may have died while it made a table

    def table(self, feature_set: str) -> Table:
        """Return the table of one feature set."""
        return Table(layout.features(self.path, feature_set), sealed=False)  # each row has its checksum

    def resolve(self, name: str | None = None) -> str:
        """Return the full name of a feature set, given its name or a unique prefix.

        Without a name, return the only set or the one written last. A set of augmented views needs its full name.

        Raises:
            StoreNotFound: no set, or several sets, have this prefix.
        """
        if name in (every := self.sets()):
            return name
        sets = [s for s in every if not s.endswith(VIEWS_SUFFIX)]
        if not sets:
            raise StoreNotFound(
                f"{self.path} has no features yet: run `penult embed SOURCE --store {self.path}` first."
            )
        if name is None:
            last = header.read(self.path).get("last_set")
            return last if last in sets else sets[-1]
        matches = [s for s in sets if s.startswith(name)]
        if len(matches) != 1:
            raise StoreNotFound(f"Expected: one feature set named {name!r}. Got: {matches or 'none'} of {sets}.")
        return matches[0]

    def spec(self, feature_set: str) -> FeatureSpec:
        """Return the spec that a set's vectors were computed with.

        Raises:
            StoreCorrupt: the spec's set name is not the name of this set.
        """
        spec = spec_of(self.table(feature_set).schema)
        if spec.set_name != feature_set:
            raise StoreCorrupt(f"Expected: the features of {feature_set}. Got: those of {spec.set_name}.")
        return spec

    def require(self, feature_set: str, fingerprint: str) -> None:
        """Raise SpecMismatch unless the set has this fingerprint."""
        actual = self.spec(feature_set).fingerprint()
        if actual != fingerprint:
            raise SpecMismatch(
                f"Expected: features with fingerprint {fingerprint[:12]}. Got: {feature_set} with {actual[:12]}; "
                "embed with the same backbone, weights and preprocessing, or train a head on this set."
            )

    def add_set(self, spec: FeatureSpec) -> str:
        """Create the feature set of ``spec`` if it is missing; return its name.

        Raises:
            SpecMismatch: a set of this name has another spec.
        """
        name = spec.set_name
        table = self.table(name)
        if table.exists() and (found := self.spec(name)) != spec:
            raise SpecMismatch(f"Feature set {name} differs: {spec.difference(found)}.")
        table.create(features_schema(spec))
        return name

    def views_sets(self, feature_set: str) -> list[str]:
        """Return the names of the sets that hold augmented views of a set's images."""
        spec = self.spec(feature_set)
        views = [name for name in self.sets() if name.endswith(VIEWS_SUFFIX)]
        return [name for name in views if replace(self.spec(name), augmentation=None) == spec]

    def content_parts(self, feature_set: str, view: int | None = None) -> Iterator[np.ndarray]:
        """Yield what ``content_keys`` returns part by part, as it is stored: S32 (n,)."""
        view = self.spec(feature_set).first_view if view is None else view
        for batch in self.table(feature_set).scan(["sha256"], f"view = {view}"):
            yield keys_of(batch.column(0))

    def content_keys(self, feature_set: str, view: int | None = None) -> np.ndarray:
        """Return the sha256 digests of the contents that have this view in a set: S32 (n,), sorted.

        The default is the set's first view.
        """
        parts = list(self.content_parts(feature_set, view))
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, "S32")

    def view_counts(self, feature_set: str) -> tuple[np.ndarray, np.ndarray]:
        """Count the views of each content of a set: keys S32 (n,), sorted; counts int64 (n,)."""
        parts = [keys_of(b.column(0)) for b in self.table(feature_set).scan(["sha256"])]
        return np.unique(np.concatenate(parts) if parts else np.empty(0, "S32"), return_counts=True)

    def known_files(self, feature_set: str, view: int | None = None) -> Known:
        """Return the state of each uri of the catalog for one feature set: EMBEDDED, FAILED_BEFORE or NOT_IN_SET.

        A uri is EMBEDDED if its content has this view, by default the set's first view. Views are made in the order of
        their numbers.
        """
        embedded = self.content_keys(feature_set, view)

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for batch in self.catalog.scan(["uri", "size", "mtime_ns", "status", "sha256"]):
                embeddable = pc.equal(batch.column("status"), OK)
                ok = np.asarray(embeddable)
                states = np.full(batch.num_rows, FAILED_BEFORE, np.uint8)
                there = contains(embedded, keys_of(batch.column("sha256").filter(embeddable)))
                states[ok] = np.where(there, EMBEDDED, NOT_IN_SET)
                yield (
                    text_digests(batch.column("uri").to_pylist()),
                    pair_digests(batch.column("size"), batch.column("mtime_ns")),
                    states,
                )

        return Known.from_parts(parts())

    @contextmanager
    def whole(self) -> Iterator[dict[str, int]]:
        """Yield the versions of the catalog and the labels after the last complete commit, by the table's file name.

        Another commit may be under way, or may have died. Within the block, these versions are not cleaned up. A
        version that another tool has removed is not in the result; the caller then reads the latest. Features may be
        read at their latest version: a commit adds rows to them first, and removes none.
        """
        with self.catalog.lease(), self.labels.lease():
            told = header.read(self.path)["tables"]
            last = {table: told.get(table.path.name, {}).get("version") for table in (self.catalog, self.labels)}
            yield {table.path.name: version for table, version in last.items() if version in table.versions()}

    def run_folder(self, run_id: str) -> PurePath:
        """Return the folder in which a run keeps its results."""
        return layout.run(self.path, run_id)

    def runs(self) -> list[RunRecord]:
        """Return the records of all runs, oldest first."""
        with ThreadPoolExecutor(RUNS_AT_ONCE) as pool:
            found = pool.map(_record, listed(self.path / layout.RUNS))
            return [record for record in found if record is not None]

    def _knows_sources(self, version: int | None = None) -> bool:
        """Return whether the labels table has this format version's column ``source``."""
        return "source" in self.labels.columns(version)


def _record(folder: PurePath) -> RunRecord | None:
    """Return the record of a run; None if it has none, as one that died."""
    try:
        return RunRecord.read(folder)
    except StoreNotFound:
        if exists(folder / layout.RECORD):
            raise
        return None
