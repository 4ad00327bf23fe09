"""Compare what a source lists now with what it listed last: which label rows to write, which images to remove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import labels
from featurestore.index import CHANGED, contains, text_digests
from featurestore.labels import ELSEWHERE, LISTED
from featurestore.store import FeatureStore
from pipelines.sources.corpus import Entry, Source

MAX_CLASSES, MAX_CHANGES = 10_000, 1000  # that are reported


class Membership:
    """One listing of a source, read chunk by chunk and compared with the previous listing.

    Attributes:
        source: the source's identity, a URI.
        before: how many images the previous listing had.
        is_known: whether the source has ever listed an image.
        written: how many statements are new or changed, without new ones that have no label, split or group.
        removed: after ``removals``, how many images no source lists any more.
        refused: after ``removals``, how many images are no longer listed, but stay because they are too many.
    """

    def __init__(self, store: FeatureStore, source: str, label_set: str, run_id: str) -> None:
        self.source, self.written, self.removed, self.refused = source, 0, 0, 0
        self._store, self._label_set, self._run_id = store, label_set, run_id
        self._known, self._names = store.membership(source, label_set)
        self.before = self._known.count(LISTED, ELSEWHERE)
        self.is_known = len(self._known) > 0
        self._classes, self._splits, self._changes = Counter[str](), Counter[str](), Counter[tuple[Any, Any]]()
        self._unlabelled = 0

    def take(self, entries: Sequence[Entry], keys: np.ndarray) -> pa.RecordBatch:
        """Count a chunk of the listing; return the rows to write (schema LABELS). ``keys`` are digests of the URIs."""
        said = [(entry.label, entry.split, entry.group) for entry in entries]
        digests = labels.said_digests(said, self._names)
        states = self._known.lookup(keys, digests)
        self._count(said)
        for label, old in zip(
            (label for label, _, _ in _at(said, states == CHANGED)),
            self._known.values(keys[states == CHANGED]),
            strict=True,
        ):
            before = self._names.get(labels.label_digest(old), label)  # a removed image had no label
            self._changes[before, label] += before != label
        fresh = states != LISTED
        statements = _at(said, fresh)
        is_change = (states[fresh] == CHANGED).tolist()
        self.written += sum(any(one) or changed for one, changed in zip(statements, is_change, strict=True))
        uris = (entry.uri for entry in _at(entries, fresh))
        return labels.statements(uris, statements, self._label_set, self.source, self._run_id)

    def removals(self, incomplete: Sequence[str], max_removed: float) -> Iterator[pa.RecordBatch]:
        """Yield rows (schema LABELS) that remove the images that the listing lacks; call it after the last chunk.

        Args:
            incomplete: URI prefixes of places that could not be listed; images there are not removed.
            max_removed: share of the source's images; if more than this are missing, none is removed.
        """
        unseen = self._known.unseen(LISTED, ELSEWHERE)
        if not len(unseen):
            return
        missing = list(self._missing(unseen, tuple(incomplete)))
        uris = pc.unique(pa.chunked_array([batch.column("uri") for batch in missing], pa.string()))
        if len(uris) > max_removed * self.before:
            self.refused = len(uris)
            return
        self.removed = len(uris) - self._listed_elsewhere(uris)
        yield from (labels.removals(batch, self._run_id) for batch in missing)

    def to_json(self) -> dict[str, Any]:
        """Return the object ``labels`` of ``penult embed --json``."""
        return {
            "classes": largest_and_smallest(self._classes),
            "class_count": len(self._classes),
            "unlabelled": self._unlabelled,
            "splits": dict(self._splits),
            "changed": changes(self._changes),
        }

    def _count(self, said: Sequence[tuple[str | None, str | None, str | None]]) -> None:
        for (label, split, _), count in Counter(said).items():
            if label is None:
                self._unlabelled += count
            else:
                self._classes[label] += count
            if split is not None:
                self._splits[split] += count

    def _missing(self, unseen: np.ndarray, incomplete: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        """Yield the source's current rows of images that the listing lacks."""
        condition = f"listed = true AND {labels.said_by(self.source)}"
        for batch in self._store.labels.scan(["uri", "label_set", "source"], condition):
            uris = batch.column("uri").to_pylist()
            gone = contains(unseen, text_digests(uris))
            if incomplete:
                gone &= ~np.array([uri.startswith(incomplete) for uri in uris], bool)
            if gone.any():
                yield batch.filter(pa.array(gone))

    def _listed_elsewhere(self, uris: pa.Array) -> int:
        """Return how many of these images another source lists."""
        condition = f"{labels.LISTING} AND (source IS NULL OR NOT {labels.said_by(self.source)})"
        found = [
            batch.column("uri").filter(pc.is_in(batch.column("uri"), value_set=uris))
            for batch in self._store.labels.scan(["uri"], condition)
        ]
        return len(pc.unique(pa.chunked_array(found, pa.string())))


def changes(counted: Counter[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """Return changed labels as JSON, the most frequent first, at most MAX_CHANGES of them; None means no label."""
    return [{"from": old, "to": new, "images": n} for (old, new), n in counted.most_common(MAX_CHANGES) if n]


def largest_and_smallest(classes: Counter[str]) -> dict[str, int]:
    """Return the count of each class, the largest first; of more than MAX_CLASSES only the largest and smallest."""
    counted = classes.most_common()
    if len(counted) > MAX_CLASSES:
        counted = counted[: MAX_CLASSES // 2] + counted[-MAX_CLASSES // 2 :]
    return dict(counted)


def adopt(store: FeatureStore, source: Source) -> None:
    """Record a source as the origin of images that older penults embedded from it; the lock must be held.

    Those penults recorded no origin.
    """
    if not store.unknown_origin:
        return
    embeds = (run for run in store.runs() if run.kind == "embed")
    store.adopt(source.uri, [run.run_id for run in embeds if _names(run.parameters.get("source"), source.location)])


def _names(recorded: object, location: str) -> bool:
    """Return whether a run's record names this location; a relative path may have been typed in any folder."""
    if not isinstance(recorded, str):
        return False
    path = Path(location).expanduser().absolute()
    words = [word for word in Path(recorded).parts if word not in (".", "..")]
    if Path(recorded).is_absolute() or not words:
        return Path(recorded).absolute() == path
    return list(path.parts[-len(words) :]) == words


def _at(values: Sequence[Any], mask: np.ndarray) -> list[Any]:
    return [value for value, wanted in zip(values, mask, strict=True) if wanted]
