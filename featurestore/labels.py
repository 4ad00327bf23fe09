"""The rows of ``labels.lance``: labels, splits and groups of images, given by sources and by people.

A row is one statement about one image in one label set, made by one source or by people. A source's row also says that
the source lists the image. If a later listing lacks the image, its row stays, with ``listed`` false and without a
label, and with the id of the run that noticed. This keeps a history of which images a source listed.

Label, split and group are decided separately. For each, the value that people gave counts. If people gave none, the
newest value of a source that lists the image counts. Newest means the highest run id: ids grow from commit to commit.

Format version 1 had no sources. Its rows are people's if a run of the kind ``label`` wrote them. The source of its
other rows is unknown until that source is listed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.index import DIGEST, Known, text_digests
from featurestore.limits import check_label_set
from featurestore.schema import LABELS, LABELS_V1
from featurestore.storage.fragments import Replaced

PEOPLE = ""  # the source of rows that people gave
COLUMNS = ("label", "split", "group")
LISTED, REMOVED, ELSEWHERE = 2, 3, 4  # states: listed, no longer listed, listed in other label sets only

OF_UNKNOWN_ORIGIN_V1 = "run_id NOT LIKE '%-label-%'"
OF_UNKNOWN_ORIGIN = f"(source IS NULL AND listed IS NULL AND {OF_UNKNOWN_ORIGIN_V1})"
BY_PEOPLE = f"(source = '{PEOPLE}' OR (source IS NULL AND run_id LIKE '%-label-%'))"
OF_SOURCES = f"(source != '{PEOPLE}' OR {OF_UNKNOWN_ORIGIN})"
LISTING = f"(listed = true OR {OF_UNKNOWN_ORIGIN})"


def in_label_set(name: str) -> str:
    """Return the SQL condition for the rows of a label set.

    Raises:
        UsageError: the name is not allowed for a label set.
    """
    check_label_set(name)
    return f"label_set = '{name}'"


def said_by(source: str | None) -> str:
    """Return the SQL condition for the rows of a source, of PEOPLE, or of an unknown source (None)."""
    if source is None:
        return OF_UNKNOWN_ORIGIN
    return BY_PEOPLE if source == PEOPLE else f"source = '{source.replace(chr(39), chr(39) * 2)}'"


def statements(
    uris: Iterable[str], said: Iterable[tuple[str | None, ...]], label_set: str, source: str, run_id: str
) -> pa.RecordBatch:
    """Return label rows (schema LABELS) of a source that lists images, or of PEOPLE.

    Args:
        uris: n images.
        said: n tuples of label, split and group.
        label_set, source, run_id: the same for all rows.
    """
    uris = list(uris)
    columns = [[*column] for column in zip(*said, strict=True)] or [[], [], []]
    listed = None if source == PEOPLE else True
    same = ([value] * len(uris) for value in (label_set, run_id, source, listed))
    return _batch([uris, *columns, *same])


def removals(rows: pa.RecordBatch, run_id: str) -> pa.RecordBatch:
    """Return rows that say that the images of ``rows`` (uri, label_set, source) are no longer listed."""
    n = rows.num_rows
    nothing, uris, sets, sources = [None] * n, *(rows.column(name) for name in ("uri", "label_set", "source"))
    return _batch([uris, nothing, nothing, nothing, sets, [run_id] * n, sources, [False] * n])


def listed_by(source: str, rows: pa.Table) -> pa.Table:
    """Return the same rows (schema LABELS) with this source, all of them listed."""
    n = len(rows)
    for name, values in (("source", pa.array([source] * n, pa.string())), ("listed", pa.array([True] * n, pa.bool_()))):
        rows = rows.set_column(rows.schema.get_field_index(name), LABELS.field(name), values)
    return rows


def unlabelled(catalog: pa.Table, said: pa.Table) -> pa.Table:
    """Return empty rows (schema LABELS) for the images of the catalog (uri, run_id) that no row of ``said`` names."""
    rows = catalog.filter(pc.invert(pc.is_in(catalog.column("uri"), value_set=said.column("uri"))))
    rows = rows.append_column("label_set", pa.array(["default"] * len(rows), pa.string()))
    for name in COLUMNS:
        rows = rows.append_column(name, pa.nulls(len(rows), pa.string()))
    return with_origin(rows).select(LABELS.names).cast(LABELS)


def with_origin(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
    """Return rows of any format version with the columns of LABELS."""
    for field in LABELS:
        if field.name not in rows.schema.names and field.name not in LABELS_V1.names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def replaced_by(batches: Iterator[pa.RecordBatch]) -> list[Replaced]:
    """Return the stored rows that new rows replace: those of the same image, label set and source."""
    uris: dict[tuple[str, str | None], list[pa.Array]] = {}
    for batch in batches:
        for label_set in pc.unique(batch.column("label_set")).to_pylist():
            of_set = batch.filter(pc.equal(batch.column("label_set"), label_set))
            for source in pc.unique(of_set.column("source")).to_pylist():
                rows = of_set.filter(_equal(of_set.column("source"), source))
                uris.setdefault((label_set, source), []).append(rows.column("uri"))
    return [
        Replaced(pa.chunked_array(parts, pa.string()), f"{in_label_set(label_set)} AND {said_by(source)}")
        for (label_set, source), parts in uris.items()
    ]


def said_digests(rows: Iterable[tuple[str | None, ...]], names: dict[bytes, str | None]) -> np.ndarray:
    """Return one digest, S16 (n,), per label, split and group.

    The first half is the digest of the label alone; ``names`` is given the label for each of these halves.
    """
    seen: dict[tuple[str | None, ...], bytes] = {}
    digests = []
    for row in rows:
        if (digest := seen.get(row)) is None:
            halves = [hashlib.blake2b(part.tobytes(), digest_size=8).digest() for part in _parts(row)]
            digest = seen[row] = b"".join(halves)
            names[label_digest(digest)] = row[0]
        digests.append(digest)
    return np.array(digests, DIGEST)


def label_digest(said: bytes) -> bytes:
    """Return the key in ``names`` for one of ``said_digests``, without trailing zeros, which numpy drops too."""
    return said[:8].rstrip(b"\0")


def _parts(row: tuple[str | None, ...]) -> tuple[np.ndarray, np.ndarray]:
    digests = text_digests(row)
    return digests[:1], digests[1:]


def membership(batches: Iterable[pa.RecordBatch], label_set: str) -> tuple[Known, dict[bytes, str | None]]:
    """Return the images that a source listed last, with their labels.

    Args:
        batches: uri, label, split, group, label_set and listed of all rows of the source.
        label_set: the values come from its rows; images that are listed in other label sets only are ELSEWHERE.

    Returns:
        A map from the digest of each uri to its value (see ``said_digests``) and its state, LISTED, REMOVED or
        ELSEWHERE; and the labels by ``label_digest`` of the values.
    """
    names: dict[bytes, str | None] = {}
    own, others = [], []
    for batch in batches:
        here = pc.equal(batch.column("label_set"), label_set)
        rows = batch.filter(here)
        listed = np.asarray(pc.fill_null(rows.column("listed"), True), bool)
        said = zip(*(rows.column(name).to_pylist() for name in COLUMNS), strict=True)
        states = np.where(listed, LISTED, REMOVED).astype(np.uint8)
        digests = said_digests(said, names)
        digests[~listed] = b""  # differs from the digest of every listed image, and stands for no label
        own.append((text_digests(rows.column("uri").to_pylist()), digests, states))
        there = batch.filter(pc.and_(pc.invert(here), pc.fill_null(batch.column("listed"), True)))
        uris = text_digests(there.column("uri").to_pylist())
        others.append((uris, np.zeros(len(uris), DIGEST), np.full(len(uris), ELSEWHERE, np.uint8)))
    return Known.from_parts([*own, *others]), names


def count_sources(scan: Callable[[list[str]], Iterable[pa.RecordBatch]]) -> dict[str | None, tuple[int, int]]:
    """Count the images that each source lists, and those it no longer lists, from the rows of all sources.

    An image has one row per label set. With one label set, rows are counted; with several, the digests of URIs.
    """
    sets = {name for batch in scan(["label_set"]) for name in pc.unique(batch.column(0)).to_pylist()}
    counts: dict[str | None, list[int]] = {}
    if len(sets) <= 1:
        for batch in scan(["source", "listed"]):
            listed = pc.fill_null(batch.column("listed"), True)
            for source in pc.unique(batch.column("source")).to_pylist():
                of_source = _equal(batch.column("source"), source)
                there = int(pc.sum(pc.and_(of_source, listed)).as_py())
                total = counts.setdefault(source, [0, 0])
                total[0] += there
                total[1] += int(pc.sum(of_source).as_py()) - there
        return {source: (listed, once) for source, (listed, once) in counts.items()}
    images: dict[str | None, tuple[set[bytes], set[bytes]]] = {}
    for batch in scan(["uri", "source", "listed"]):
        digests = text_digests(batch.column("uri").to_pylist()).tolist()
        rows = (batch.column(name).to_pylist() for name in ("source", "listed"))
        for digest, source, is_listed in zip(digests, *rows, strict=True):
            images.setdefault(source, (set(), set()))[is_listed is False].add(digest)
    return {source: (len(listed), len(once - listed)) for source, (listed, once) in images.items()}


def count_silent(rows: pa.RecordBatch | pa.Table) -> int:
    """Count the rows that give no label, no split and no group."""
    label, split, group = (pc.is_null(rows.column(name)) for name in COLUMNS)
    return int(pc.sum(pc.and_(pc.and_(label, split), group)).as_py() or 0)


def effective(rows: pa.Table, origins: Collection[str | None]) -> pa.Table:
    """Return the values in effect, one row per image: uri, label, split, group, run_id and layer.

    The layer is 1 where people gave the label, else 0.

    Args:
        rows: uri, label, split, group, run_id of listed images in one label set; with the column source if there are
            several sources.
        origins: the sources of the rows.
    """
    by_run = pc.match_substring(rows.column("run_id"), "-label-")
    if len(origins) <= 1:  # one row per image already
        people = by_run if None in origins else pa.array(np.full(len(rows), PEOPLE in origins))
        return rows.append_column("layer", pc.cast(people, pa.int8()))
    source = rows.column("source")
    people = pc.or_(_equal(source, PEOPLE), pc.and_(pc.is_null(source), by_run))
    told = rows.drop_columns(["source"]).append_column("layer", pc.cast(people, pa.int8()))
    told = told.sort_by([("layer", "ascending"), ("run_id", "ascending")])
    labelled = pc.is_valid(told.column("label"))
    nothing = pa.scalar(None, pa.int64())
    told = told.append_column("last", pc.if_else(labelled, pa.array(np.arange(told.num_rows)), nothing))
    groups = told.group_by("uri", use_threads=False).aggregate([(name, "last") for name in (*COLUMNS, "last")])
    last = groups.column("last_last")
    of_label = told.select(["run_id", "layer"]).take(pc.fill_null(last, 0))
    columns = [groups.column("uri"), *(groups.column(f"{name}_last") for name in COLUMNS)]
    columns += [of_label.column("run_id"), of_label.column("layer")]
    return pa.table(columns, names=["uri", *COLUMNS, "run_id", "layer"])


def _equal(column: Any, value: str | None) -> Any:
    """Return where a column equals a value, or is null if the value is None; bool, no nulls."""
    return pc.is_null(column) if value is None else pc.fill_null(pc.equal(column, value), False)


def _batch(columns: list[object]) -> pa.RecordBatch:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LABELS, strict=True)]
    return pa.record_batch(arrays, schema=LABELS)
