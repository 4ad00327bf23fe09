"""Statements about images, and which of them counts: against rules written as loops over rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import labels
from featurestore.errors import UsageError
from featurestore.index import DIGEST, text_digests
from featurestore.labels import ELSEWHERE, LISTED, PEOPLE, REMOVED
from featurestore.schema import LABELS, LABELS_V1

SOURCES = (None, PEOPLE, "/a", "it's /b")
Row = dict[str, Any]


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, LABELS)


def row(uri: str, run_id: str = "r1", label_set: str = "default", **said: Any) -> Row:
    return {"uri": uri, "label_set": label_set, "run_id": run_id} | said


statements = st.lists(
    st.fixed_dictionaries(
        {
            "uri": st.sampled_from("abc"),
            "label": st.sampled_from([None, "x", "y"]),
            "split": st.sampled_from([None, "val"]),
            "group": st.sampled_from([None, "g", "h"]),
            "label_set": st.sampled_from(["default", "other"]),
            "source": st.sampled_from(SOURCES),
            "listed": st.sampled_from([None, True, False]),
        }
    ),
    max_size=10,
).map(lambda rows: [one | {"run_id": f"r{n}{'-label-' if n % 3 else '-embed-'}x"} for n, one in enumerate(rows)])


def test_names_of_label_sets() -> None:
    for name in ("a", "é.b-c_1", "x" * 64):
        assert labels.in_label_set(name) == f"label_set = '{name}'"
    for name in ("", "a b", "a'b", "x" * 65, "a\n"):
        with pytest.raises(UsageError, match="a label set named with up to 64 letters"):
            labels.in_label_set(name)


def test_conditions_for_rows_of_a_source() -> None:
    assert labels.said_by("/a") == "source = '/a'" and labels.said_by("it's") == "source = 'it''s'"
    assert labels.said_by(None) == "(source IS NULL AND listed IS NULL AND run_id NOT LIKE '%-label-%')"
    assert labels.said_by(PEOPLE) == "(source = '' OR (source IS NULL AND run_id LIKE '%-label-%'))"


def test_rows_of_a_source_and_of_people() -> None:
    said = [("cat", None, "g"), (None, "val", None)]
    for source, listed in (("/a", True), (PEOPLE, None)):
        batch = labels.statements(iter(["u", "v"]), said, "set", source, "r7")
        assert batch.schema == LABELS
        shared = {"label_set": "set", "run_id": "r7", "source": source, "listed": listed}
        assert batch.to_pylist() == [
            {"uri": "u", "label": "cat", "split": None, "group": "g"} | shared,
            {"uri": "v", "label": None, "split": "val", "group": None} | shared,
        ]
    assert labels.statements([], [], "set", "/a", "r7").num_rows == 0
    gone = labels.removals(batch, "r8")
    assert gone.schema == LABELS and gone.to_pylist() == [
        dict.fromkeys(("label", "split", "group"))
        | {"uri": uri, "label_set": "set", "run_id": "r8", "source": PEOPLE, "listed": False}
        for uri in ("u", "v")
    ]
    given_a_source = labels.listed_by("/b", pa.Table.from_batches([batch]))
    assert given_a_source.to_pylist() == [one | {"source": "/b", "listed": True} for one in batch.to_pylist()]
    assert given_a_source.schema == LABELS


def test_images_that_no_row_names() -> None:
    catalog = pa.table({"uri": ["u", "v", "w"], "run_id": ["r1", "r2", "r3"]})
    rows = labels.unlabelled(catalog, pa.table({"uri": ["v", "x"]}))
    nothing = dict.fromkeys(("label", "split", "group", "source", "listed"))
    assert rows.schema == LABELS and rows.to_pylist() == [
        {"uri": uri, "label_set": "default", "run_id": run_id} | nothing for uri, run_id in (("u", "r1"), ("w", "r3"))
    ]


def test_rows_of_an_older_penult_get_empty_columns() -> None:
    old = table([row("u", label="x")]).select(LABELS_V1.names)
    new = labels.with_origin(old)
    assert new.schema.names == LABELS.names and new.to_pylist() == table([row("u", label="x")]).to_pylist()
    assert labels.with_origin(new) is new
    part = old.select(["uri", "label"])
    assert labels.with_origin(part).schema.names == ["uri", "label", "source", "listed"]


@given(statements)
def test_new_rows_take_the_place_of_those_of_their_set_and_source(rows: list[Row]) -> None:
    expected: dict[str, list[str]] = {}
    for one in rows:
        condition = f"label_set = '{one['label_set']}' AND {labels.said_by(one['source'])}"
        expected.setdefault(condition, []).append(one["uri"])
    replaced = labels.replaced_by(iter(table(rows).to_batches(max_chunksize=3)))
    assert {one.where: sorted(one.values.to_pylist()) for one in replaced} == {
        k: sorted(v) for k, v in expected.items()
    }
    assert len(replaced) == len(expected) and all(one.column == "uri" for one in replaced)


@given(statements)
def test_membership(rows: list[Row]) -> None:
    """As a dictionary of what one source has said; of images in this label set, its row there counts."""
    own = {one["uri"]: one for one in rows if one["label_set"] == "default"}
    rows = [*own.values(), *(one for one in rows if one["label_set"] == "other")]
    known, names = labels.membership(table(rows).to_batches(max_chunksize=2), "default")
    states = {one["uri"]: ELSEWHERE for one in rows if one["label_set"] == "other" and one["listed"] is not False}
    states |= {uri: REMOVED if one["listed"] is False else LISTED for uri, one in own.items()}
    uris = text_digests("abc")
    values = known.values(uris)
    asked = known.lookup(uris, values).tolist()
    for uri, value, state in zip("abc", values, asked, strict=True):
        assert state == states.get(uri, 0)
        if state == LISTED:
            said = tuple(own[uri][name] for name in labels.COLUMNS)
            assert value == labels.said_digests([said], {})[0] and names[labels.label_digest(value)] == said[0]
        elif state in (REMOVED, ELSEWHERE):
            assert value == b"" and labels.label_digest(value) not in names
    listed = {uri for uri, one in own.items() if one["listed"] is not False}
    listed |= {one["uri"] for one in rows if one["label_set"] == "other" and one["listed"] is not False}
    assert known.count(LISTED, ELSEWHERE) == len(listed)


def test_digests_of_what_is_said() -> None:
    names: dict[bytes, str | None] = {}
    rows = [(label, split, group) for label in (None, "x", "") for split in (None, "val") for group in (None, "g", "h")]
    digests = labels.said_digests([*rows, *rows], names)
    assert digests.dtype == DIGEST and len(set(digests.tolist())) == len(rows) == 18
    assert digests[:18].tolist() == digests[18:].tolist()
    halves = {
        label: {labels.label_digest(d) for d, r in zip(digests, rows, strict=False) if r[0] == label}
        for label in (None, "x", "")
    }
    assert all(len(found) == 1 for found in halves.values()) and len(names) == 3
    assert {names[half]: {half} for half in names} == halves
    assert labels.label_digest(b"1234567\0rest") == b"1234567" and labels.label_digest(b"123456789") == b"12345678"


@given(statements)
def test_images_of_each_source(rows: list[Row]) -> None:
    several = {(one["uri"], one["source"], one["label_set"]): one for one in rows}
    only = {(one["uri"], one["source"]): one | {"label_set": "default"} for one in rows}
    for chosen in (list(several.values()), list(only.values())):
        listed, once = dict[Any, set[str]](), dict[Any, set[str]]()
        for one in chosen:
            (once if one["listed"] is False else listed).setdefault(one["source"], set()).add(one["uri"])
        expected = {
            source: (len(listed.get(source, ())), len(once.get(source, set()) - listed.get(source, set())))
            for source in {*listed, *once}
        }

        def scan(columns: list[str], chosen: list[Row] = chosen) -> list[pa.RecordBatch]:
            return table(chosen).select(columns).to_batches(max_chunksize=3)

        assert labels.count_sources(scan) == expected


@given(statements)
def test_rows_that_say_nothing(rows: list[Row]) -> None:
    silent = [one for one in rows if one["label"] is one["split"] is one["group"] is None]
    assert labels.count_silent(table(rows)) == len(silent)


def counts(rows: list[Row]) -> dict[str, Row]:
    """Of each of label, split and group what people said, else the newest that a source said."""

    def layer(one: Row) -> int:
        return int(one["source"] == PEOPLE or (one["source"] is None and "-label-" in one["run_id"]))

    found: dict[str, Row] = {}
    for one in sorted(rows, key=lambda one: (layer(one), one["run_id"])):
        now = found.setdefault(one["uri"], dict.fromkeys(("uri", *labels.COLUMNS, "run_id", "layer")))
        now["uri"] = one["uri"]
        now.update({name: one[name] for name in labels.COLUMNS if one[name] is not None})
        if one["label"] is not None:
            now.update(run_id=one["run_id"], layer=layer(one))
    return found


@given(statements)
def test_what_counts_of_an_image(rows: list[Row]) -> None:
    origins = {one["source"] for one in rows}
    if len(origins) <= 1:  # then there is one row per image
        rows = list({one["uri"]: one for one in rows}.values())
    columns = ["uri", *labels.COLUMNS, "run_id"] + (["source"] if len(origins) > 1 else [])
    found = labels.effective(table(rows).select(columns), origins)
    assert found.schema.names == ["uri", *labels.COLUMNS, "run_id", "layer"]
    told = {one["uri"]: one for one in found.to_pylist()}
    assert len(told) == found.num_rows
    for uri, expected in counts(rows).items():
        names = ["uri", *labels.COLUMNS] + (["run_id", "layer"] if expected["label"] is not None else [])
        assert {name: told[uri][name] for name in names} == {name: expected[name] for name in names}
    assert told.keys() == counts(rows).keys()
