"""The second part of `penult doctor`: bring back rows that no file of the store holds, from the sources of its runs.

Only lost rows are brought back. Images that are new or changed in a source are left to the next `penult embed`, and
labels that the store still has are not touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np
import pyarrow as pa

from featurestore import layout
from featurestore.errors import (
    BackboneError,
    EngineError,
    ImageError,
    SourceError,
    SpecMismatch,
    StoreNotFound,
    UsageError,
)
from featurestore.index import NEW, contains, text_digests
from featurestore.labels import COLUMNS, PEOPLE, said_digests, statements
from featurestore.maintenance.repair import aside_of
from featurestore.runs import RunRecord
from featurestore.schema import OK, keys_of
from featurestore.storage.base import storage_of
from featurestore.store import FeatureStore
from pipelines import runners
from pipelines.concurrency import batched
from pipelines.embedding.embed import embed
from pipelines.embedding.labels import NOTHING_SAID, ROWS_PER_BATCH, as_statements, said_after
from pipelines.options import EmbedOptions
from pipelines.predict import tap_of
from pipelines.run_kinds import kind_of
from pipelines.sources import corpus
from pipelines.sources.manifests import write_manifest

Progress = Callable[[int, int], None]


Lost = Mapping[str, Sequence[str]]  # see ``restore``


def restore(store: PurePath, lost: Lost, progress: Progress | None = None) -> tuple[int, list[str]]:
    """Bring back lost rows of the labels, the catalog and the feature sets.

    Args:
        store: the store's folder.
        lost: the tables that lack rows, by path. The value lists the lost images of a feature set, as sha256 in hex; it
            is empty if not all of them are known.
        progress: called with the number of images embedded again, and how many there are in all.

    Returns:
        How many images were embedded again, and a sentence for each problem.
    """
    opened, embedded, problems = FeatureStore(store), 0, list[str]()
    if layout.LABELS in lost:
        problems += _labels(opened)
    sets = dict.fromkeys(record.result["feature_set"] for record in _newest_first(opened, "embed"))
    for name in sets:
        if layout.CATALOG in lost or layout.table_name(name) in lost:
            embedded += _features(opened, name, lost, problems, progress)
    unknown = lost.keys() - {layout.CATALOG, layout.LABELS} - {layout.table_name(name) for name in sets}
    problems += [
        f"`penult embed` again what {name} was made of: no run says what that was." for name in sorted(unknown)
    ]
    return embedded, problems


def _labels(store: FeatureStore) -> Iterator[str]:
    """Bring back lost label rows: what each source lists now, and what people said last. Yield the problems."""
    done = set()
    for record in _newest_first(store, "embed"):
        source, label_set = record.parameters["source"], record.parameters["label_set"]
        was_listed = record.result.get("source") != ""  # a fine-tuning embeds a manifest that is no source of the store
        if (source, label_set) in done or not was_listed:
            continue
        done.add((source, label_set))
        try:
            listing = corpus.list_source(source, EmbedOptions.from_json(record.parameters).hints)
            _give_back(store, listing.uri, label_set, _listed(listing, label_set, record.run_id))
        except SourceError as error:
            yield f"`penult embed {source}` again, for labels that were lost: {error}"
    said: dict[str, list[RunRecord]] = {}
    for record in reversed([*_newest_first(store, "label")]):
        said.setdefault(record.parameters["label_set"], []).append(record)
    for label_set, records in said.items():
        people = NOTHING_SAID
        for record in records:
            try:
                people = said_after(people, record)
            except SourceError as error:
                yield f"`penult label {record.parameters['file']}` again, for labels that were lost: {error}"
                people = NOTHING_SAID  # the unreadable file may have changed what older files said
        _give_back(store, PEOPLE, label_set, as_statements(people, label_set))


def _listed(listing: corpus.Source, label_set: str, run_id: str) -> Iterator[pa.RecordBatch]:
    """Yield the statements (schema LABELS) of a source, with the id of the run that listed it last."""
    for entries in batched(listing, ROWS_PER_BATCH):
        said = [(entry.label, entry.split, entry.group) for entry in entries]
        yield statements((entry.uri for entry in entries), said, label_set, listing.uri, run_id)


def _give_back(store: FeatureStore, by: str, label_set: str, told: Iterable[pa.RecordBatch]) -> None:
    """Add statements of ``by`` (a source or PEOPLE) on those images for which it has no row in the label set."""
    with store.lock():
        known, names = store.membership(by, label_set)

        def lost() -> Iterator[pa.RecordBatch]:
            for rows in told:
                said = zip(*(rows.column(name).to_pylist() for name in COLUMNS), strict=True)
                keys = text_digests(rows.column("uri").to_pylist())
                yield rows.filter(pa.array(known.lookup(keys, said_digests(said, names)) == NEW))

        store.labels.swap([], store.labels.stage(rows for rows in lost() if rows.num_rows))
        store.remember()


def _features(store: FeatureStore, name: str, lost: Lost, problems: list[str], progress: Progress | None) -> int:
    """Embed the images of a feature set whose features or catalog rows are lost; return how many."""
    records = [record for record in _newest_first(store, "embed") if record.result["feature_set"] == name]
    options = _options(records[0])
    is_lost = _losses(store, name, options.views or None, lost)
    uris: dict[str, None] = {}
    for source in dict.fromkeys(record.parameters["source"] for record in records):
        try:
            for entries in batched(corpus.list_source(source), ROWS_PER_BATCH):
                uris |= dict.fromkeys(entry.uri for entry in is_lost(entries))
        except SourceError as error:
            problems.append(f"`penult embed {source}` again, for images that were lost: {error}")
    if not uris:
        return 0
    try:
        if name in store.sets():
            tap_of(store, name)  # raises SpecMismatch if what is embedded now would be another set
        return embed(_manifest(store, name, list(uris)), store.path, options, progress, as_source=False).embedded
    except (BackboneError, EngineError, SourceError, SpecMismatch, StoreNotFound, UsageError) as error:
        problems.append(f"`penult embed` again {len(uris):,} images of {name} that were lost: {error}")
        return 0


def _losses(
    store: FeatureStore, name: str, views: int | None, lost: Lost
) -> Callable[[list[corpus.Entry]], list[corpus.Entry]]:
    """Return a function that picks the entries of a source that lost their features in a set, or their catalog row."""
    set_lost, catalog_lost = layout.table_name(name) in lost, layout.CATALOG in lost
    held = store.content_keys(name, views) if name in store.sets() else np.empty(0, "S32")
    known, bare, bare_keys = [np.empty(0, "S16")], [np.empty(0, "S16")], [np.empty(0, "S32")]
    for batch in store.catalog.scan(["uri", "sha256", "status"]):
        digests = text_digests(batch.column("uri").to_pylist())
        ok = np.array([status == OK for status in batch.column("status").to_pylist()], bool)
        keys = keys_of(batch.column("sha256").filter(pa.array(ok)))
        there = contains(held, keys)
        known.append(digests)
        bare.append(digests[ok][~there])
        bare_keys.append(keys[~there])
    in_catalog, without, keys = np.sort(np.concatenate(known)), np.concatenate(bare), np.concatenate(bare_keys)
    named = np.array([bytes.fromhex(key) for key in lost.get(layout.table_name(name), ())], "S32")
    if len(named) and contains(np.sort(keys), named).all():  # else a damaged key may stand for any image
        without = without[contains(np.sort(named), keys)]
    without = np.sort(without)

    def is_lost(entries: list[corpus.Entry]) -> list[corpus.Entry]:
        digests = text_digests(entry.uri for entry in entries)
        features = contains(without, digests) if set_lost else np.zeros(len(digests), bool)
        rows = ~contains(in_catalog, digests) if catalog_lost else np.zeros(len(digests), bool)
        return [
            entry
            for entry, feature, row in zip(entries, features, rows, strict=True)
            if feature or (row and (set_lost or _was_embedded(entry, held)))
        ]

    return is_lost


def _was_embedded(entry: corpus.Entry, held: np.ndarray) -> bool:
    """Return whether an image without a catalog row has features.

    Also True for an image that cannot be read: it is not embedded, but gets its catalog row back.
    """
    try:
        data = corpus.read(entry.uri, entry.offset, entry.size)[0]
    except ImageError:
        return True
    return bool(contains(held, np.array([hashlib.sha256(data).digest()], "S32"))[0])


def _manifest(store: FeatureStore, name: str, uris: list[str]) -> str:
    """Write a manifest of the images to embed again, beside the files that were put aside; return its path."""
    return write_manifest(aside_of(store.path) / f"{name}.parquet", uris)


def _options(record: RunRecord) -> EmbedOptions:
    """Return the options of an embed run, with the Beam runner that works on every machine."""
    asked = EmbedOptions.from_json(record.parameters)
    return replace(asked, runner=runners.IN_PROCESS, runner_arguments=(), retry_failed=False)


def _newest_first(store: FeatureStore, *kinds: str) -> Iterator[RunRecord]:
    """Yield the runs of these kinds, newest first, without those that read a manifest of an earlier repair."""
    aside = storage_of(store.path).uri(store.path / layout.ASIDE) + "/"
    for record in reversed(store.runs()):
        if record.kind in kinds and not record.parameters[kind_of(record.kind).source].startswith(aside):
            yield record
