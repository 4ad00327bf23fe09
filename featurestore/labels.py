"""What is said of images: by the sources that list them, and over it by people.

A row of ``labels.lance`` is one statement: about one image, in one label set, by one source or by people. The row of a
source also says that the source lists the image. When a later listing lacks it, the row stays, with ``listed`` false
and without a label, so that membership has a history and each step of it has a run.

Label, split and group are separate. Of each, what people said counts, else the newest statement of a source that lists
the image and names one. Newest is the order of run ids, which grow from commit to commit.

Format version 1 had no sources: its rows are people's where a run of the kind ``label`` wrote them. The origin of the
others is unknown until their source is listed again.
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
from featurestore.storage.table import Replaced

PEOPLE = ""  # the source of what people said
COLUMNS = ("label", "split", "group")
LISTED, REMOVED, ELSEWHERE = 2, 3, 4  # states of a source's image: listed, no longer, listed in another label set only

OF_UNKNOWN_ORIGIN_V1 = "run_id NOT LIKE '%-label-%'"
OF_UNKNOWN_ORIGIN = f"(source IS NULL AND listed IS NULL AND {OF_UNKNOWN_ORIGIN_V1})"
BY_PEOPLE = f"(source = '{PEOPLE}' OR (source IS NULL AND run_id LIKE '%-label-%'))"
OF_SOURCES = f"(source != '{PEOPLE}' OR {OF_UNKNOWN_ORIGIN})"
LISTING = f"(listed = true OR {OF_UNKNOWN_ORIGIN})"


def in_label_set(name: str) -> str:
    """The SQL condition for the rows of a label set.

    Raises:
        UsageError: no label set may be called so.
    """
    check_label_set(name)
    return f"label_set = '{name}'"


def said_by(source: str | None) -> str:
    """The SQL condition for the rows of a source, of PEOPLE, or of an unknown origin (None)."""
    if source is None:
        return OF_UNKNOWN_ORIGIN
    return BY_PEOPLE if source == PEOPLE else f"source = '{source.replace(chr(39), chr(39) * 2)}'"


def statements(
    uris: Iterable[str], said: Iterable[tuple[str | None, ...]], label_set: str, source: str, run_id: str
) -> pa.RecordBatch:
    """Rows (schema LABELS) of a source that lists images, or of PEOPLE.

    Args:
        uris: n images.
        said: n times label, split and group.
        label_set, source, run_id: of all rows.
    """
    uris = list(uris)
    columns = [[*column] for column in zip(*said, strict=True)] or [[], [], []]
    listed = None if source == PEOPLE else True
    same = ([value] * len(uris) for value in (label_set, run_id, source, listed))
    return _batch([uris, *columns, *same])


def removals(rows: pa.RecordBatch, run_id: str) -> pa.RecordBatch:
    """Rows that say that images of ``rows`` (uri, label_set, source) are no longer listed."""
    n = rows.num_rows
    nothing, uris, sets, sources = [None] * n, *(rows.column(name) for name in ("uri", "label_set", "source"))
    return _batch([uris, nothing, nothing, nothing, sets, [run_id] * n, sources, [False] * n])


def listed_by(source: str, rows: pa.Table) -> pa.Table:
    """The same rows (schema LABELS) as a source's."""
    n = len(rows)
    for name, values in (("source", pa.array([source] * n, pa.string())), ("listed", pa.array([True] * n, pa.bool_()))):
        rows = rows.set_column(rows.schema.get_field_index(name), LABELS.field(name), values)
    return rows


def unlabelled(catalog: pa.Table, said: pa.Table) -> pa.Table:
    """Rows (schema LABELS) that say nothing, for images of the catalog (uri, run_id) that no row of ``said`` names."""
    rows = catalog.filter(pc.invert(pc.is_in(catalog.column("uri"), value_set=said.column("uri"))))
    rows = rows.append_column("label_set", pa.array(["default"] * len(rows), pa.string()))
    for name in COLUMNS:
        rows = rows.append_column(name, pa.nulls(len(rows), pa.string()))
    return with_origin(rows).select(LABELS.names).cast(LABELS)


def with_origin(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
    """Rows of any format version in the columns of LABELS."""
    for field in LABELS:
        if field.name not in rows.schema.names and field.name not in LABELS_V1.names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def replaced_by(batches: Iterator[pa.RecordBatch]) -> list[Replaced]:
    """The present rows that new ones take the place of: those of the same image, label set and source."""
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
    """S16 (n,) of label, split and group: the first half is the label's own, which ``names`` learns to read."""
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
    """The key in ``names`` of one of ``said_digests``; numpy drops a digest's trailing zeros, and so does this."""
    return said[:8].rstrip(b"\0")


def _parts(row: tuple[str | None, ...]) -> tuple[np.ndarray, np.ndarray]:
    digests = text_digests(row)
    return digests[:1], digests[1:]


def membership(batches: Iterable[pa.RecordBatch], label_set: str) -> tuple[Known, dict[bytes, str | None]]:
    """What a source listed last and said of it: states LISTED, REMOVED or ELSEWHERE, by the digest of a uri.

    Args:
        batches: uri, label, split, group, label_set and listed of all rows of the source.
        label_set: whose statements are the values; images that are listed in others only are ELSEWHERE.

    Returns:
        What is known; and the labels by ``label_digest`` of its values.
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
        digests[~listed] = b""  # equal to nothing that is listed, and of no label
        own.append((text_digests(rows.column("uri").to_pylist()), digests, states))
        there = batch.filter(pc.and_(pc.invert(here), pc.fill_null(batch.column("listed"), True)))
        uris = text_digests(there.column("uri").to_pylist())
        others.append((uris, np.zeros(len(uris), DIGEST), np.full(len(uris), ELSEWHERE, np.uint8)))
    return Known.from_parts([*own, *others]), names


def count_sources(scan: Callable[[list[str]], Iterable[pa.RecordBatch]]) -> dict[str | None, tuple[int, int]]:
    """How many images each source lists, and how many it listed once, from the rows of all sources.

    An image has a row per label set; only where there are several are images told apart, by the digests of their URIs.
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
    """How many rows give no label, no split and no group."""
    label, split, group = (pc.is_null(rows.column(name)) for name in COLUMNS)
    return int(pc.sum(pc.and_(pc.and_(label, split), group)).as_py() or 0)


def effective(rows: pa.Table, origins: Collection[str | None]) -> pa.Table:
    """One row per image, as it counts: uri, label, split, group, run_id and layer (1 where people gave the label).

    Args:
        rows: of one label set, of images that are listed: uri, label, split, group, run_id; and source, where there
            are several.
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
    """Bool, no nulls: where a column has a value, or none."""
    return pc.is_null(column) if value is None else pc.fill_null(pc.equal(column, value), False)


def _batch(columns: list[object]) -> pa.RecordBatch:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LABELS, strict=True)]
    return pa.record_batch(arrays, schema=LABELS)
