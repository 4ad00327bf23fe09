"""Labelled features in memory: what a head is fitted on and scored with."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.schema import KEY_BYTES, keys_of
from featurestore.spec import FeatureSpec
from featurestore.splits import FOLDS, SPLITS, Split, assign, check_name, place
from featurestore.vectors import StoredVectors

AT_A_TIME = 65_536  # rows that are Python objects
AMBIGUOUS = "ambiguous label"  # a reason why contents are left out
EXAMPLES = 2  # uris shown of contents that are left out


@dataclass(frozen=True)
class Dataset:
    """The labelled features of one feature set, one row per unique content, ordered by content.

    Attributes:
        feature_set: name of the set in the store.
        fingerprint: fingerprint of the set's FeatureSpec; a head keeps it and refuses features with another one.
        X: float32 (n, d), the stored vectors.
        y: str (n,), class labels.
        keys: S32 (n,), sha256 of the image's bytes.
        uris: str of variable width (n,), one image with this content.
        splits: str (n,), each "train", "val" or "test".
        excluded: number of labelled contents that are left out, by reason.
        ambiguous_uris: two example uris of contents with an ambiguous label.
        groups: str (n,); rows of one group stay together in every split and fold. None: each row is its own group.
        stored: the vectors if they are not in memory; X is then (n, 0).
    """

    feature_set: str
    fingerprint: str
    X: np.ndarray
    y: np.ndarray
    keys: np.ndarray
    uris: np.ndarray
    splits: np.ndarray
    excluded: dict[str, int] = field(default_factory=dict)
    ambiguous_uris: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    stored: StoredVectors | None = None

    @property
    def ids(self) -> np.ndarray:
        """Sha256 of the image's bytes in hex, str (n,)."""
        return hex_ids(self.keys)

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.X.shape[1] if self.stored is None else self.stored.width

    def read(self) -> Dataset:
        """Return these rows with X in memory."""
        return self if self.stored is None else replace(self, X=self.stored.read(), stored=None)

    def part(self, split: str) -> Dataset:
        """Return the rows of one split; X is a copy.

        Raises:
            UsageError: there is no split of this name.
        """
        check_name(split)
        return self.take(np.flatnonzero(self.splits == split))

    def take(self, rows: np.ndarray | slice) -> Dataset:
        """Return some rows, by number, mask or slice; a slice is no copy."""
        return replace(
            self,
            X=self.X[rows],
            y=self.y[rows],
            keys=self.keys[rows],
            uris=self.uris[rows],
            splits=self.splits[rows],
            groups=None if self.groups is None else self.groups[rows],
            stored=None if self.stored is None else self.stored.take(rows),
        )

    def folds(self, k: int) -> np.ndarray:
        """Return the fold of each row, int (n,) in 0..k-1: a hash of its group, else of its content, decides."""
        names = (key.hex() for key in _raw(self.keys)) if self.groups is None else iter(self.groups)
        return np.fromiter((int(place(name.encode(), FOLDS) * k) for name in names), int, len(self))

    def with_views(self, X: np.ndarray, rows: np.ndarray) -> Dataset:
        """Return these rows, followed by other vectors ``X`` (m, d) of the rows with numbers ``rows``, int (m,)."""
        every = np.concatenate([np.arange(len(self)), rows])
        return replace(self.take(every), X=np.concatenate([self.X, X]))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class LabelledContents:
    """Unique contents with their labels, sorted by key: a dataset before its vectors are read.

    Attributes:
        keys: S32 (n,), sha256 of the image's bytes.
        rows: n rows of labels: label, uri and group.
        given: object (n,), the split that the corpus names, or None.
        ambiguous: S32 (k,), contents left out because one run gave their copies different labels.
        differing: S32 (m,), contents whose copies have different labels, including the ambiguous ones.
        ambiguous_uris: two example uris of ambiguous contents.
    """

    keys: np.ndarray
    rows: pa.Table
    given: np.ndarray
    ambiguous: np.ndarray
    differing: np.ndarray
    ambiguous_uris: tuple[str, ...] = ()


def labelled_contents(catalog: pa.Table, labels: pa.Table) -> LabelledContents:
    """Join labels to the catalog and keep one row per content.

    If copies of a content have different labels, a label given by people counts, else the label of the newest run. If
    one run gave the copies different labels, the content is ambiguous and left out. If copies are given different
    splits, test wins over val, and val over train, so that no test image is trained on.

    Args:
        catalog: uri and sha256 of the images that could be read.
        labels: the labels of one label set, see ``labels.effective``.
    """
    at = pc.index_in(labels.column("uri"), value_set=catalog.column("uri"))
    known = pc.and_(at.is_valid(), labels.column("label").is_valid())
    rows = labels.append_column("sha256", catalog.column("sha256").take(at))
    del catalog, labels  # two copies of every uri
    rows = rows if pc.all(known).as_py() else rows.filter(known)
    by = [("sha256", "ascending"), ("layer", "descending"), ("run_id", "descending"), ("uri", "ascending")]
    order = pc.sort_indices(rows, by).to_numpy()
    keys = keys_of(rows.column("sha256"))[order]
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(first)
    content = np.cumsum(first) - 1
    codes, runs = (np.asarray(_codes(rows.column(name)))[order] for name in ("label", "run_id"))
    differing = _varies(codes, starts)
    layers = np.asarray(rows.column("layer"))[order]
    newest = (runs == runs[starts][content]) & (layers == layers[starts][content])
    ambiguous = _varies(np.where(newest, codes, codes[starts][content]), starts)
    rank = np.asarray(pc.fill_null(pc.index_in(rows.column("split"), value_set=pa.array(SPLITS)), -1))[order]
    strongest = np.maximum.reduceat(rank, starts) if len(starts) else rank
    keep = ~ambiguous
    return LabelledContents(
        keys=keys[starts[keep]],
        rows=rows.select(["label", "uri", "group"]).take(order[starts[keep]]),
        given=np.array([None, *SPLITS], object)[strongest[keep] + 1],
        ambiguous=keys[starts[ambiguous]],
        differing=keys[starts[differing]],
        ambiguous_uris=tuple(rows.column("uri").take(order[starts[ambiguous]][:EXAMPLES]).to_pylist()),
    )


def assemble(
    contents: LabelledContents,
    X: np.ndarray,
    found: np.ndarray,
    spec: FeatureSpec,
    split: Split,
    stored: StoredVectors | None = None,
) -> Dataset:
    """Split labelled contents and join them to their vectors.

    Args:
        contents: n labelled contents.
        X: float32 (n, d), in the order of the contents.
        found: bool (n,), which of them have a vector.
        spec: the spec of the vectors.
        split: how to split the contents that have no given split.
        stored: the vectors, if X is only (n, 0).
    """
    groups = contents.rows.column("group")
    places = (
        key if group is None else b"group:" + group.encode()
        for key, group in zip(_raw(contents.keys), _values(groups), strict=True)
    )
    excluded = {AMBIGUOUS: len(contents.ambiguous), "no features in this set": int((~found).sum())}
    data = Dataset(
        feature_set=spec.set_name,
        fingerprint=spec.fingerprint(),
        X=X,
        y=_names(contents.rows.column("label")),
        keys=contents.keys,
        uris=_texts(_values(contents.rows.column("uri")), len(contents.keys)),
        splits=np.array(assign(places, contents.given, split)),
        excluded={reason: count for reason, count in excluded.items() if count},
        ambiguous_uris=contents.ambiguous_uris,
        groups=_together(groups, contents.keys),
        stored=stored,
    )
    return data if found.all() else data.take(found)


def _together(groups: pa.ChunkedArray, keys: np.ndarray) -> np.ndarray | None:
    """Return per row what keeps rows together: its group, or else its content; None if no row has a group."""
    if groups.null_count == len(groups):
        return None
    named = zip(_values(groups), _raw(keys), strict=True)
    return _texts((key.hex() if group is None else f"group:{group}" for group, key in named), len(keys))


def hex_ids(keys: np.ndarray) -> np.ndarray:
    """Convert digests to hex: S32 (n,) → U64 (n,)."""
    return np.frombuffer(binascii.hexlify(keys.tobytes()), f"S{2 * KEY_BYTES}").astype(f"U{2 * KEY_BYTES}")


def _raw(keys: np.ndarray) -> Iterator[bytes]:
    """Yield whole digests of S32 (n,); numpy would drop a digest's trailing zero bytes."""
    data = keys.tobytes()
    return (data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES))


def _codes(column: pa.ChunkedArray) -> pa.Array:
    return pc.index_in(column, value_set=pc.unique(column)).combine_chunks()


def _varies(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return per content whether its rows have more than one code, bool."""
    if not len(starts):
        return np.zeros(0, bool)
    return np.minimum.reduceat(codes, starts) != np.maximum.reduceat(codes, starts)


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    """Yield a column's values, converted in pieces: a Python object takes several times the memory of its value."""
    for start in range(0, len(column), AT_A_TIME):
        yield from column.slice(start, AT_A_TIME).to_pylist()


def _texts(values: Iterator[str], n: int) -> np.ndarray:
    """Return str of variable width (n,), so that one long text does not make the others as wide."""
    texts = np.empty(n, np.dtypes.StringDType())
    for start in range(0, n, AT_A_TIME):
        texts[start : start + AT_A_TIME] = list(islice(values, AT_A_TIME))
    return texts


def _names(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column with few different values as str (n,)."""
    coded = column.combine_chunks().dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), str)[coded.indices.to_numpy()]
