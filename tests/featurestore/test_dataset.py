"""Datasets of a few rows, against rules written as loops."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import SPEC
from featurestore import dataset as module
from featurestore.dataset import Dataset, assemble, hex_ids, labelled_contents
from featurestore.errors import UsageError
from featurestore.splits import SPLITS, TEST, TRAIN, VAL, Split, assign, place

CONTENTS = [bytes([n]) * 31 + b"\0" for n in range(1, 5)]  # digests that end in zeros keep them
CATALOG = pa.schema([pa.field("uri", pa.string()), pa.field("sha256", pa.binary(32))])
SAID = pa.schema([pa.field(name, pa.string()) for name in ("uri", "label", "split", "group", "run_id")])
SAID = SAID.append(pa.field("layer", pa.int8()))

said = st.fixed_dictionaries(
    {
        "label": st.sampled_from([None, "cat", "dog"]),
        "split": st.sampled_from([None, *SPLITS]),
        "group": st.sampled_from([None, "g"]),
        "run_id": st.sampled_from(["r1", "r2"]),
        "layer": st.integers(0, 1),
        "sha256": st.none() | st.integers(0, 3),  # None: the catalog does not know it
    }
)


@given(st.lists(said, max_size=9))
def test_one_row_per_content(found: list[dict[str, Any]]) -> None:
    rows = [{"uri": f"u{number}"} | one for number, one in enumerate(found)]
    known = [{"uri": one["uri"], "sha256": CONTENTS[one["sha256"]]} for one in rows if one["sha256"] is not None]
    got = labelled_contents(pa.Table.from_pylist(known[::-1], CATALOG), pa.Table.from_pylist(rows, SAID))
    copies: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    for one in rows:
        if one["sha256"] is not None and one["label"] is not None:
            copies[CONTENTS[one["sha256"]]].append(one)
    expected, ambiguous, differing, examples = [], [], [], []
    for content, group in sorted(copies.items()):
        best = max((one["layer"], one["run_id"]) for one in group)
        newest = [one for one in group if (one["layer"], one["run_id"]) == best]
        differing += [content] if len({one["label"] for one in group}) > 1 else []
        if len({one["label"] for one in newest}) > 1:
            ambiguous.append(content)
            examples.append(newest[0]["uri"])
            continue
        strongest = max((one["split"] for one in group), key=lambda split: -1 if split is None else SPLITS.index(split))
        expected.append((content, newest[0]["label"], newest[0]["uri"], newest[0]["group"], strongest))
    columns = [got.rows.column(name).to_pylist() for name in ("label", "uri", "group")]
    assert list(zip(raw(got.keys), *columns, got.given.tolist(), strict=True)) == expected
    assert (raw(got.ambiguous), raw(got.differing)) == (ambiguous, differing)
    assert got.ambiguous_uris == tuple(examples[:2])


def raw(keys: np.ndarray) -> list[bytes]:
    return [key.ljust(32, b"\0") for key in keys.tolist()]


def some(*, groups: bool = True) -> tuple[Any, np.ndarray]:
    """Six contents, of which two are one group's and one has no features."""
    uris = [f"u{n}" * (1 + 50 * (n == 3)) for n in range(6)]
    rows = [
        {"uri": uris[n], "label": "ab"[n % 2], "split": None, "run_id": "r", "layer": 0}
        | {"group": "g" if groups and n in (1, 4) else None}
        for n in range(6)
    ]
    contents = [hashlib.sha256(b"%d" % n).digest() for n in range(6)]
    catalog = [{"uri": uri, "sha256": content} for uri, content in zip(uris, contents, strict=True)]
    found = labelled_contents(pa.Table.from_pylist(catalog, CATALOG), pa.Table.from_pylist(rows, SAID))
    return found, np.arange(18, dtype=np.float32).reshape(6, 3)


def test_contents_and_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    for at_a_time in (module.AT_A_TIME, 2, 6):
        monkeypatch.setattr(module, "AT_A_TIME", at_a_time)
        contents, X = some()
        there = np.array([True, True, False, True, True, True])
        whole, data = (assemble(contents, X, found, SPEC, Split(0.3, 0.3, 5)) for found in (there | True, there))
        numbers = {hashlib.sha256(b"%d" % n).digest(): n for n in range(6)}
        order = [numbers[key] for key in raw(contents.keys)]
        assert (whole.feature_set, whole.fingerprint, whole.excluded) == (SPEC.set_name, SPEC.fingerprint(), {})
        assert whole.y.tolist() == ["ab"[n % 2] for n in order] and whole.y.dtype.kind == "U"
        assert whole.uris.tolist() == [f"u{n}" * (1 + 50 * (n == 3)) for n in order]
        assert whole.groups is not None and whole.groups.tolist() == [
            "group:g" if n in (1, 4) else key.hex() for n, key in zip(order, raw(contents.keys), strict=True)
        ]
        keys = [b"group:g" if n in (1, 4) else key for n, key in zip(order, raw(contents.keys), strict=True)]
        assert whole.splits.tolist() == assign(keys, [None] * 6, Split(0.3, 0.3, 5))
        assert data.excluded == {"no features in this set": 1} and len(data) == 5 and data.width == 3
        assert np.array_equal(data.X, X[there]) and data.keys.tolist() == whole.keys[there].tolist()
        for name in ("y", "uris", "splits", "groups"):
            assert getattr(data, name).tolist() == getattr(whole, name)[there].tolist()
        assert whole.ids.tolist() == [key.hex() for key in raw(whole.keys)] == hex_ids(whole.keys).tolist()


def test_folds_and_parts() -> None:
    for groups in (True, False):
        contents, X = some(groups=groups)
        data = assemble(contents, X, np.ones(6, bool), SPEC, Split(0.3, 0.3, 0))
        assert (data.groups is None) != groups
        names = [key.hex() for key in raw(data.keys)] if data.groups is None else data.groups.tolist()
        for k in (2, 5):
            assert data.folds(k).tolist() == [int(place(name.encode(), 2**63) * k) for name in names]
        data = replace(data, splits=np.array([TRAIN, VAL, TEST, TRAIN, VAL, TRAIN]))
        for split, rows in ((TRAIN, [0, 3, 5]), (VAL, [1, 4]), (TEST, [2])):
            part = data.part(split)
            assert np.array_equal(part.X, X[rows]) and part.ids.tolist() == data.ids[rows].tolist()
            assert (part.groups is None) == (data.groups is None)
        with pytest.raises(UsageError, match=r"Expected: a split, one of train, val, test\. Got: 'other'"):
            data.part("other")
        more = data.with_views(X[:2] + 50, np.array([4, 4]))
        assert np.array_equal(more.X, np.concatenate([X, X[:2] + 50])) and len(more) == 8
        for name in ("y", "keys", "uris", "splits"):
            assert getattr(more, name).tolist() == getattr(data, name)[[*range(6), 4, 4]].tolist()
        assert data.read() is data


def test_ambiguous_contents_are_counted() -> None:
    rows = [{"uri": f"u{n}", "label": "ab"[n % 2], "run_id": "r", "layer": 0} for n in range(6)]
    catalog = [{"uri": f"u{n}", "sha256": CONTENTS[n // 2]} for n in range(6)]
    rows[5]["label"] = "a"
    contents = labelled_contents(pa.Table.from_pylist(catalog, CATALOG), pa.Table.from_pylist(rows, SAID))
    data: Dataset = assemble(contents, np.ones((1, 2)), np.ones(1, bool), SPEC, Split(0, 0, 0))
    assert data.excluded == {"ambiguous label": 2} and data.ambiguous_uris == ("u0", "u2")
    assert data.uris.tolist() == ["u4"] and data.y.tolist() == ["a"]
    nothing = labelled_contents(pa.Table.from_pylist([], CATALOG), pa.Table.from_pylist(rows, SAID))
    assert len(nothing.keys) == len(nothing.differing) == len(nothing.given) == 0 and nothing.ambiguous_uris == ()
