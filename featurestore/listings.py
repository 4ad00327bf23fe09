"""What sources and people said of the images of a store: which images there are, their labels, splits and groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from featurestore import header, labels
from featurestore.index import Known
from featurestore.limits import check_label_set
from featurestore.schema import LABELS
from featurestore.sets import FeatureSets
from featurestore.storage.fragments import Replaced


class Listings(FeatureSets):
    """The labels table of an open store; see ``FeatureStore``."""

    def membership(self, source: str, label_set: str) -> tuple[Known, dict[bytes, str | None]]:
        """Return the images that a source listed last, and their labels in a label set: see ``labels.membership``."""
        check_label_set(label_set)
        columns = ["uri", *labels.COLUMNS, "label_set", "listed"]
        return labels.membership(self.labels.scan(columns, labels.said_by(source)), label_set)

    def uris_of(self, source: str) -> pa.Array:
        """Return the uris of the images that a source listed last."""
        rows = self.labels.read(["uri"], f"listed = true AND {labels.said_by(source)}")
        return pc.unique(rows.column("uri"))

    def is_of_people(self, label_set: str) -> bool:
        """Return whether a label set has rows, and only people's."""
        return self._said_in(label_set, None)[1] == {labels.PEOPLE}

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

    def people_rows(self, label_set: str = "default") -> pa.Table:
        """Return people's rows of a label set, one per image: uri, label, split, group. The lock must be held."""
        return self.labels.read(["uri", *labels.COLUMNS], f"{labels.in_label_set(label_set)} AND {labels.BY_PEOPLE}")

    def _said_in(self, label_set: str, version: int | None) -> tuple[str, set[str | None]]:
        """Return the SQL condition for the rows of a label set that are in effect, and the sources of these rows."""
        condition = labels.in_label_set(label_set)
        if not self._knows_sources(version):
            return condition, {None}
        condition = f"{condition} AND (listed IS NULL OR listed = true)"
        origins = (pc.unique(batch.column(0)).to_pylist() for batch in self.labels.scan(["source"], condition, version))
        return condition, set(chain.from_iterable(origins))
