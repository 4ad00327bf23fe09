"""FeatureStore: open, lock, commit, and read features at one version.

A commit replays a run's journal: features first, then labels, the catalog last. Each step takes effect once, however
often it is replayed. A run that died at any point is completed by replaying its journal again.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import header, labels, layout
from featurestore.dataset import Dataset, LabelledContents, assemble, hex_ids, labelled_contents
from featurestore.errors import (
    HeadError,
    SpecMismatch,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    UsageError,
)
from featurestore.index import Known, contains, pair_digests, text_digests
from featurestore.journal import ShardEntry, Staging, pending
from featurestore.limits import check_label_set
from featurestore.reader import StoredVectors
from featurestore.runs import RunRecord, new_run_id, time_of
from featurestore.schema import (
    CATALOG,
    LABELS,
    LABELS_V1,
    OK,
    features_schema,
    intact,
    keys_of,
    row_keys,
    spec_of,
    vectors_of,
)
from featurestore.spec import VIEWS_SUFFIX, FeatureSpec
from featurestore.splits import Split, check_name
from featurestore.storage import compaction
from featurestore.storage.base import storage_of
from featurestore.storage.files import exists, flush, is_file, listed, make_folder
from featurestore.storage.fragments import Replaced
from featurestore.storage.lock import locked
from featurestore.storage.table import Pin, Table

EMBEDDED, FAILED_BEFORE, NOT_IN_SET = 2, 3, 4  # states of a known image, for Known.lookup
FEW_KEYS = 500  # up to so many are looked up by a filter
LOG = logging.getLogger("penult")
BATCH_ROWS = 2048  # of vectors stay in the CPU cache while they are checked and copied


class FeatureStore:
    """A folder of Lance tables: the catalog of images, their labels, and one table per feature set.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore.create(Path(folder) / "my.store")  # what `penult embed` does
        ...     store.sets()  # after it: X, y, ids = store.features(split="train")
        []

    Raises:
        StoreNotFound: the folder is not a store.
        FormatError: a newer penult wrote it.
        StoreCorrupt: a table is not what was last committed.
    """

    def __init__(self, path: str | PurePath) -> None:
        self.path: PurePath = Path(path)
        self.catalog = Table(self.path / layout.CATALOG)
        self.labels = Table(self.path / layout.LABELS)
        header.check(self.path)
        self.catalog.check_schema(CATALOG)
        self.labels.check_schema(LABELS if self._knows_sources() else LABELS_V1)

    @classmethod
    def create(cls, path: str | PurePath) -> FeatureStore:
        """Open the store at ``path``; create it if there is none.

        Raises:
            UsageError: the folder holds something other than a store.
        """
        path = Path(path)
        if not str(path.absolute()).isprintable() or re.match(r"[a-z][a-z0-9+]+:/", str(path)):  # s3://, say
            raise UsageError(f"Expected: --store, a folder here, of a name in printable UTF-8. Got: {str(path)!r}.")
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
            Table(path / layout.CATALOG).create(CATALOG)
            Table(path / layout.LABELS).create(LABELS)
            header.create(path)
            flush(path.parent)

    @property
    def address(self) -> str:
        """Where the store is, for another process: absolute."""
        return storage_of(self.path).uri(self.path)

    # -- what is there -------------------------------------------------------------------------------------------

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

    # -- what is known -------------------------------------------------------------------------------------------

    def content_keys(self, feature_set: str, view: int | None = None) -> np.ndarray:
        """Return the sha256 digests of the contents that have this view in a set: S32 (n,), sorted.

        The default is the set's first view.
        """
        view = self.spec(feature_set).first_view if view is None else view
        parts = [keys_of(b.column(0)) for b in self.table(feature_set).scan(["sha256"], f"view = {view}")]
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, "S32")

    def view_counts(self, feature_set: str) -> tuple[np.ndarray, np.ndarray]:
        """Count the views of each content of a set: keys S32 (n,), sorted; counts int64 (n,)."""
        parts = [keys_of(b.column(0)) for b in self.table(feature_set).scan(["sha256"])]
        return np.unique(np.concatenate(parts) if parts else np.empty(0, "S32"), return_counts=True)

    def views_sets(self, feature_set: str) -> list[str]:
        """Return the names of the sets that hold augmented views of a set's images."""
        spec = self.spec(feature_set)
        views = [name for name in self.sets() if name.endswith(VIEWS_SUFFIX)]
        return [name for name in views if replace(self.spec(name), augmentation=None) == spec]

    def known_files(self, feature_set: str, view: int | None = None) -> Known:
        """Return the state of each uri of the catalog for one feature set: EMBEDDED, FAILED_BEFORE or NOT_IN_SET.

        A uri is EMBEDDED if its content has this view, by default the set's first view. Views are made in the order of
        their numbers.
        """
        embedded = self.content_keys(feature_set, view)

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            for batch in self.catalog.scan(["uri", "size", "mtime_ns", "status", "sha256"]):
                ok = np.asarray(pc.equal(batch.column("status"), OK))
                states = np.full(batch.num_rows, FAILED_BEFORE, np.uint8)
                there = contains(embedded, keys_of(batch.column("sha256").filter(pa.array(ok))))
                states[ok] = np.where(there, EMBEDDED, NOT_IN_SET)
                yield (
                    text_digests(batch.column("uri").to_pylist()),
                    pair_digests(batch.column("size"), batch.column("mtime_ns")),
                    states,
                )

        return Known.from_parts(parts())

    def membership(self, source: str, label_set: str) -> tuple[Known, dict[bytes, str | None]]:
        """Return the images that a source listed last, and their labels in a label set: see ``labels.membership``."""
        check_label_set(label_set)
        columns = ["uri", *labels.COLUMNS, "label_set", "listed"]
        return labels.membership(self.labels.scan(columns, labels.said_by(source)), label_set)

    def removed_uris(self, version: int | None = None) -> pa.Array:
        """Return the uris of images that were listed before and that no source lists any more."""
        if not self._knows_sources(version):
            return pa.array([], pa.string())
        gone = pc.unique(self.labels.read(["uri"], "listed = false", version).column("uri"))
        if not len(gone):
            return gone
        listed = [
            batch.column("uri").filter(pc.is_in(batch.column("uri"), value_set=gone))
            for batch in self.labels.scan(["uri"], labels.LISTING, version)
        ]
        return gone.filter(pc.invert(pc.is_in(gone, value_set=pa.chunked_array(listed, pa.string()))))

    def sources(self, version: int | None = None) -> dict[str | None, tuple[int, int]]:
        """Count the images that each source lists, and those it no longer lists; None stands for an unknown source."""
        if not self._knows_sources(version):
            unknown = sum(batch.num_rows for batch in self.labels.scan(["uri"], labels.OF_UNKNOWN_ORIGIN_V1, version))
            return {None: (unknown, 0)} if unknown else {}
        return labels.count_sources(partial(self.labels.scan, condition=labels.OF_SOURCES, version=version))

    def listed_by(self, uris: pa.ChunkedArray, version: int | None = None) -> Counter[str | None]:
        """Count how many of these images each source lists; None stands for an unknown source."""
        if not self._knows_sources(version):
            found = [batch.column("uri") for batch in self.labels.scan(["uri"], labels.OF_UNKNOWN_ORIGIN_V1, version)]
            among = pc.is_in(pa.chunked_array(found, pa.string()), value_set=uris)
            return Counter({None: int(pc.sum(among).as_py() or 0)})
        pairs = set[tuple[str, str | None]]()
        for batch in self.labels.scan(["uri", "source"], labels.LISTING, version):
            rows = batch.filter(pc.is_in(batch.column("uri"), value_set=uris))
            pairs.update(zip(*(rows.column(name).to_pylist() for name in ("uri", "source")), strict=True))
        return Counter(source for _, source in pairs)

    @property
    def unknown_origin(self) -> bool:
        """Whether there may be images whose source no row names."""
        told = header.read(self.path)
        return bool(told.get("unknown_origin")) or told["format_version"] < header.FORMAT_VERSION

    def count_unnamed(self) -> int:
        """Count the images of the catalog that no row of a source names: an older penult listed them unlabelled."""
        if not self.unknown_origin:
            return 0
        condition = labels.OF_SOURCES if self._knows_sources() else labels.OF_UNKNOWN_ORIGIN_V1
        named = self.labels.read(["uri"], condition)
        return len(labels.unlabelled(self.catalog.read(["uri", "run_id"]), named))

    def adopt(self, source: str, runs: Collection[str]) -> None:
        """Assign to a source the images that these runs listed; the lock must be held.

        The runs are those of an older penult, which did not note the source.
        """
        if not runs:
            return
        of_runs = f"run_id IN ({', '.join(map(repr, sorted(runs)))})"
        old = self.labels.read(LABELS.names, f"{labels.OF_UNKNOWN_ORIGIN} AND {of_runs}")
        unlabelled = labels.unlabelled(
            self.catalog.read(["uri", "run_id"], of_runs), self.labels.read(["uri"], labels.OF_SOURCES)
        )
        rows = labels.listed_by(source, pa.concat_tables([old, unlabelled]))
        if rows.num_rows:
            gone = Replaced(old.column("uri"), f"{labels.OF_UNKNOWN_ORIGIN} AND {of_runs}")
            self.labels.exchange(self.labels.stage(rows.to_batches()), gone)

    def _knows_sources(self, version: int | None = None) -> bool:
        """Return whether the labels table has this format version's column ``source``."""
        return "source" in self.labels.columns(version)

    # -- writing -------------------------------------------------------------------------------------------------

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store's lock: only one run may write at a time.

        Raises:
            StoreLocked: another run holds the lock.
            StoreError: the folder cannot be written to.
        """
        return locked(self.path)

    def recover(self) -> list[str]:
        """Commit the finished shards of dead runs; return the ids of the runs that had rows. The lock must be held.

        A store of an older format version is upgraded to this one.
        """
        self.bring_up()
        dead, recovered = pending(self.path), []
        for staging in dead:
            for path in staging.damaged():
                LOG.warning("%s is damaged: what it stands for is embedded anew.", path)
            if staging.feature_set is None:
                staging.remove()
                continue
            recovered += [staging.run_id] if staging.holds_rows() else []
            self.commit(staging, whole=True)
        for table in (self.catalog, self.labels, *map(self.table, self.sets())):
            table.note()  # a run may have died between a commit, or a cleanup, and its note
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
        if not features.has_run(staging.run_id):
            features.commit(staging.run_id, self._new_fragments(feature_set, list(staging.entries()), whole))
        if not self.labels.has_run(staging.run_id):
            self._commit_labels(staging.run_id, staging.label_rows)
        if not self.catalog.has_run(staging.run_id):
            dropped = [pa.array([], pa.string())]
            staged = self.catalog.stage(
                self._backed(staging.catalog_rows(), self.content_keys(feature_set), dropped.append)
            )
            replaced = staging.replaced_uris()
            stays = pc.is_in(replaced, value_set=pa.concat_arrays(dropped))  # rows that no new row replaces
            self.catalog.commit(staging.run_id, staged, [Replaced(replaced.filter(pc.invert(stays)))])
        tables = [features, self.labels, self.catalog]
        last_set = None if feature_set.endswith(VIEWS_SUFFIX) else feature_set
        header.remember(self.path, tables, last_set, staging.run_id)
        staging.remove()
        self._tend(tables)

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
        self._commit_labels(run_id, lambda: iter(rows))
        header.remember(self.path, [self.labels], last_run=run_id)
        self._tend([self.labels])

    def _tend(self, tables: list[Table]) -> None:
        """Merge small fragments and drop old versions after a commit."""
        try:
            for table in tables:
                compaction.tend(table)
        except StoreError as error:  # the commit is done; compaction can wait
            LOG.warning("Not tidied up: %s", error)
        header.remember(self.path, tables)

    def remember(self) -> None:
        """Note the current state of all tables in the header. The lock must be held."""
        header.remember(self.path, [self.catalog, self.labels, *map(self.table, self.sets())])

    def _commit_labels(self, run_id: str, rows: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        """Add label rows and drop those they replace; each call of ``rows`` starts a new pass, so rows can stream."""
        if next(rows(), None) is not None:
            self.bring_up()
            replaced = labels.replaced_by(rows()) if self.labels.count() else []
            self.labels.commit(run_id, self.labels.stage(rows()), replaced)

    def _new_fragments(self, feature_set: str, entries: list[ShardEntry], whole: bool) -> list[str]:
        """Return the shards' fragments with each view of a content once: two workers may have met the same bytes."""
        table = self.table(feature_set)
        fragments = []
        for fragment in (fragment for entry in entries for fragment in entry.fragments):
            if problem := table.staged_damage(fragment, whole):
                LOG.warning("%s: its images are embedded anew by the next run.", problem)
            else:
                fragments.append(fragment)
        keys = [
            np.concatenate([row_keys(*columns) for columns in table.staged_columns(f, ["sha256", "view"])])
            for f in fragments
        ]
        if not keys:
            return []
        stored = [row_keys(b.column(0), b.column(1)) for b in table.scan(["sha256", "view"])]
        every = np.concatenate(keys)
        keep = np.zeros(len(every), bool)
        keep[np.unique(every, return_index=True)[1]] = True
        keep &= ~contains(np.sort(np.concatenate(stored)) if stored else every[:0], every)
        unique, start = [], 0
        for fragment, own in zip(fragments, keys, strict=True):
            mask = keep[start : start + len(own)]
            start += len(own)
            unique += [fragment] if mask.all() else table.restage(fragment, pa.array(mask)) if mask.any() else []
        return unique

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

    # -- reading -------------------------------------------------------------------------------------------------

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
        for batch in self.batches(feature_set, condition):
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
    ) -> Iterator[pa.RecordBatch]:
        """Stream a feature set (sha256, view, vector, checksum) that may not fit in memory, and check each row.

        ``pin`` keeps one version of the set available for several passes.

        Raises:
            StoreCorrupt: a row's checksum does not match.
        """
        table = self.table(feature_set)
        columns, version = ["sha256", "view", "vector", "checksum"], pin.version if pin else None
        for batch in table.scan(columns, condition, version, batch_rows):
            wrong = np.flatnonzero(~intact(batch))
            if len(wrong):
                key = batch.column("sha256")[int(wrong[0])].as_py().hex()
                raise StoreCorrupt(
                    f"Expected in {table.path}: intact rows. Got: a wrong checksum for image {key}; "
                    "`penult doctor` embeds what is damaged anew."
                )
            yield batch

    def label_rows(self, label_set: str = "default", version: int | None = None) -> pa.Table:
        """Return the labels in effect in a label set, one row per listed image: see ``labels.effective``."""
        condition, origins = self._said_in(label_set, version)
        columns = ["uri", *labels.COLUMNS, "run_id"] + (["source"] if len(origins) > 1 else [])
        said = labels.effective(self.labels.read(columns, condition, version), origins)
        removed = self.removed_uris(version)
        return said.filter(pc.invert(pc.is_in(said.column("uri"), value_set=removed))) if len(removed) else said

    def count_labels(self, label_set: str, version: int | None = None) -> int:
        """Count the listed images that have a label, a split or a group in a label set."""
        condition, origins = self._said_in(label_set, version)
        one_row_each = len(origins) <= 1 and not len(self.removed_uris(version))
        columns = list(labels.COLUMNS)
        batches = (
            self.labels.scan(columns, condition, version) if one_row_each else [self.label_rows(label_set, version)]
        )
        return sum(batch.num_rows - labels.count_silent(batch) for batch in batches)

    def _said_in(self, label_set: str, version: int | None) -> tuple[str, set[str | None]]:
        """Return the SQL condition for the rows of a label set that are in effect, and the sources of these rows."""
        condition = labels.in_label_set(label_set)
        if not self._knows_sources(version):
            return condition, {None}
        condition = f"{condition} AND (listed IS NULL OR listed = true)"
        origins = (pc.unique(batch.column(0)).to_pylist() for batch in self.labels.scan(["source"], condition, version))
        return condition, set(chain.from_iterable(origins))

    def people_rows(self, label_set: str = "default") -> pa.Table:
        """Return people's rows of a label set, one per image: uri, label, split, group. The lock must be held."""
        return self.labels.read(["uri", *labels.COLUMNS], f"{labels.in_label_set(label_set)} AND {labels.BY_PEOPLE}")

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

    def to_arrow(self, feature_set: str | None = None) -> pa.Table:
        """Return a whole feature set as an Arrow table, each row checked."""
        name = self.resolve(feature_set)
        schema = pa.schema([f for f in self.table(name).schema if f.name != "run_id"])
        return pa.Table.from_batches(self.batches(name), schema)

    # -- runs ----------------------------------------------------------------------------------------------------

    def run_folder(self, run_id: str) -> PurePath:
        """Return the folder in which a run keeps its results."""
        return layout.run(self.path, run_id)

    def runs(self) -> list[RunRecord]:
        """Return the records of all runs, oldest first."""
        return [RunRecord.read(path) for path in listed(self.path / layout.RUNS) if exists(path / layout.RECORD)]


_BEFORE_FIRST_COMMIT = {layout.FEATURES, layout.CATALOG, layout.LABELS, layout.LOCK}


def _is_foreign(path: PurePath) -> bool:
    """Return whether a path does not belong to a store that is being created."""
    return path.name not in _BEFORE_FIRST_COMMIT and not re.fullmatch(
        rf"\.{re.escape(layout.HEADER)}\.\w+\.tmp", path.name
    )
