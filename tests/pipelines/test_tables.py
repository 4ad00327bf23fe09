"""Images in the rows of Parquet and Arrow files: what is listed, what is read back, and what damage does."""

from __future__ import annotations

import io
import itertools
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT, CountingEngine, write_picture
from featurestore.errors import ImageError, NoPictures, SourceError
from featurestore.storage import buckets
from featurestore.store import FeatureStore
from pipelines import commands
from pipelines.embedding.embed import embed
from pipelines.options import EmbedOptions
from pipelines.predict import predict
from pipelines.sources import parquet_files, places, rows
from pipelines.sources.corpus import Entry, Source, list_source, uri_of
from pipelines.sources.listing import Hints

GOLDEN = ROOT / "tests" / "golden" / "datasets"
COLOURS = [(40 * n, 50, 250 - 40 * n) for n in range(6)]  # of the pictures in GOLDEN


def read(entry: Entry) -> bytes:
    data, *token = places.read(entry.uri, entry.offset, entry.size)
    assert tuple(token) == (entry.size, entry.mtime_ns)
    return data


def colour(data: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(data)).getpixel((0, 0))


def said(source: Source) -> list[tuple[str | None, str | None, str | None]]:
    return [(entry.label, entry.split, entry.group) for entry in source]


# --- what Hugging Face's library wrote


@pytest.mark.parametrize("layout", ["hub", "disk"])
def test_what_datasets_wrote_is_read(layout: str) -> None:
    source = list_source(GOLDEN / layout)
    entries = list(source)
    assert source.kind == "table" and source.columns == {"image": "image", "label": "label"} and not source.problems
    found = {(entry.split, colour(read(entry)), entry.label) for entry in entries}
    labels = ["cat", "dog", "cat", "dog", "cat", None]
    splits = ["train"] * 4 + ["test"] * 2
    assert found == set(zip(splits, COLOURS, labels, strict=True)) and len(entries) == 6
    (note,) = source.notes
    assert note == "The tables' names are taken for the splits test, train; --no-split-folders takes them for nothing."
    assert {entry.split for entry in list_source(GOLDEN / layout, Hints(split_folders=False))} == {None}


def test_one_table_and_a_pattern_of_tables() -> None:
    (one, two) = list_source(GOLDEN / "hub/data/train-00001-of-00002.parquet")
    table = uri_of(GOLDEN / "hub/data/train-00001-of-00002.parquet")
    assert (one.uri, two.uri) == (f"{table}#image/0", f"{table}#image/1") and one.split is None
    assert places.canonical(one.uri) == one.uri and places.locate(two.uri) == Entry(two.uri, one.size, one.mtime_ns, 1)
    pattern = str(GOLDEN / "hub/data/{train-00000-of-00002,train-00001-of-00002,test-00000-of-00001}.parquet")
    source = list_source(pattern)
    assert [entry.split for entry in source] == ["train"] * 4 + ["test"] * 2
    assert list_source(source.uri).location == pattern
    with pytest.raises(SourceError, match=r"There is no table .*train-00002-of-00002.parquet: check the path"):
        list(list_source(str(GOLDEN / "hub/data/train-{00000..00002}-of-00002.parquet")))
    (first, *_) = list_source(GOLDEN / "disk/train/data-00000-of-00001.arrow")
    assert colour(read(first)) == COLOURS[0]


@pytest.mark.parametrize("name", ["hub/data/train-00000-of-00002.parquet", "disk/train/data-00000-of-00001.arrow"])
def test_a_table_in_a_bucket_is_read_as_one_on_a_disk(name: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{bucket}/{name}"
    buckets.put_file(uri, GOLDEN / name)
    near, far = list_source(GOLDEN / name), list_source(uri)
    pairs = list(zip(near, far, strict=True))
    assert pairs and far.kind == near.kind and far.columns == near.columns
    for one, other in pairs:
        assert other.uri == uri + one.uri[one.uri.index("#") :]
        assert (read(other), other.label, other.split) == (read(one), one.label, one.split)
    buckets.put(uri, b"no table any more")
    monkeypatch.setattr(rows, "SECONDS_BETWEEN_CHECKS", 0.0)
    with pytest.raises(ImageError):
        places.read(pairs[0][1].uri)


# --- whatever wrote the table, its cells are read back


def write_parquet(**options: Any) -> Callable[[pa.Table, Path], None]:
    return lambda table, path: pq.write_table(table, path, **options)


def write_arrow(stream: bool, rows_per_batch: int, compression: str | None = None) -> Callable[[pa.Table, Path], None]:
    def write(table: pa.Table, path: Path) -> None:
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, max_chunksize=rows_per_batch)

    return write


def write_lance(table: pa.Table, path: Path) -> None:
    lance.write_dataset(table, path, mode="overwrite", max_rows_per_file=11)


WRITERS = {
    "parquet": (".parquet", write_parquet()),
    "parquet, small groups": (".parquet", write_parquet(row_group_size=3, compression="zstd")),
    "parquet, small pages": (".parquet", write_parquet(data_page_size=64, use_dictionary=False, compression="none")),
    "parquet, version 2": (".parquet", write_parquet(data_page_version="2.0", row_group_size=7, compression="gzip")),
    "arrow file": (".arrow", write_arrow(False, 4)),
    "arrow stream": (".arrow", write_arrow(True, 1000)),
    "arrow, lz4": (".feather", write_arrow(False, 5, "lz4")),
    "arrow stream, zstd": (".arrow", write_arrow(True, 2, "zstd")),
}
LANCE = {"lance": (".lance", write_lance)}
KINDS = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "struct": pa.struct([("path", pa.string()), ("bytes", pa.binary())]),
    "large struct": pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
}
BESIDE = pa.schema(  # of every layout that a reader must step over
    [
        ("id", pa.int64()), ("nothing", pa.null()), ("flag", pa.bool_()), ("words", pa.list_(pa.string())),
        ("box", pa.list_(pa.float32(), 2)), ("view", pa.string_view()), ("facts", pa.map_(pa.string(), pa.int32())),
        ("digest", pa.binary(2)), ("when", pa.timestamp("us")), ("nested", pa.struct([("a", pa.list_(pa.int8()))])),
    ]
)  # fmt: skip


def beside(number: int) -> dict[str, Any]:
    return {
        "id": number, "flag": number % 2 == 0, "words": ["a" * number] * (number % 3), "box": [0.0, 1.0],
        "when": number, "view": "v" * (10 * number), "facts": [("k", number)], "digest": b"xy",
        "nested": {"a": [1] * number},
    }  # fmt: skip


def write(cells: list[bytes | None], path: Path, writer: str, kind: str, labels: list[str | None]) -> Path:
    field = KINDS[kind]
    image = [{"path": "p", "bytes": cell} for cell in cells] if "struct" in kind else cells
    schema = pa.schema([*BESIDE, ("image", field), ("label", pa.string())])
    values = [beside(n) | {"image": i, "label": label} for n, (i, label) in enumerate(zip(image, labels, strict=True))]
    ending, write_table = (WRITERS | LANCE)[writer]
    path = path.with_name(path.name + ending)
    table = pa.Table.from_pylist(values, schema)
    unable = {"parquet": ["nested"], "lance": ["nested", "view", "nothing", "facts"]}.get(writer.split(",")[0], [])
    write_table(table.drop_columns(unable), path)
    return path


@settings(max_examples=12)
@given(data=st.data())
@pytest.mark.parametrize(
    ("writer", "kind"),
    [*itertools.product(WRITERS, KINDS), ("lance", "binary"), ("lance", "large"), ("lance", "struct")],
)
def test_what_was_written_is_listed_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, writer: str, kind: str, data: st.DataObject
) -> None:
    cells = data.draw(st.lists(st.none() | st.binary(min_size=1, max_size=50), min_size=1, max_size=25))
    labels = [f"class {n % 3}" if n % 4 else None for n in range(len(cells))]
    path = write(cells, tmp_path_factory.mktemp("t") / "t", writer, kind, labels)
    entries = list(list_source(path))
    assert [entry.label for entry in entries] == labels
    assert len({entry.uri for entry in entries}) == len(cells)
    for number in data.draw(st.permutations(range(len(cells)))):
        assert places.locate(entries[number].uri).offset == number
        if cells[number] is None:
            with pytest.raises(ImageError, match=f"Row {number} of .* has nothing in the column 'image'") as caught:
                read(entries[number])
            assert caught.value.error_type == "empty"
        else:
            assert read(entries[number]) == cells[number]


def test_threads_read_a_large_group_in_one_pass_and_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    cells = [draw.bytes(20_000) for _ in range(500)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", data_page_size=2**16, write_batch_size=4)
    monkeypatch.setattr(parquet_files, "BATCH_BYTES", 2**18)
    monkeypatch.setattr(parquet_files, "BUFFER_BYTES", 2**16)
    begun = []
    real = parquet_files._Column._begin
    monkeypatch.setattr(parquet_files._Column, "_begin", lambda self, group: begun.append(group) or real(self, group))
    entries = list(list_source(tmp_path / "t.parquet"))
    rows.forget(uri_of(tmp_path / "t.parquet"))
    begun.clear()
    before = pa.total_allocated_bytes()
    most = 0
    with ThreadPoolExecutor(4) as pool:
        for first in range(0, 500, 20):
            assert list(pool.map(read, entries[first : first + 20])) == cells[first : first + 20]
            most = max(most, pa.total_allocated_bytes() - before)
    assert begun == [0] and most < 5 * 2**20


def test_one_row_of_a_large_arrow_batch_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [bytes([n]) * 100_000 for n in range(100)]
    write_arrow(True, 1000)(pa.table({"image": cells, "label": ["x"] * 100}), tmp_path / "t.arrow")
    entries = list(list_source(tmp_path / "t.arrow"))
    tracemalloc.start()
    assert read(entries[70]) == cells[70]
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


# --- which column is taken


def table(path: Path, /, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def hugging_face(path: Path, features: Any, **columns: Any) -> Path:
    written = pa.table(columns)
    pq.write_table(written.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


BYTES = [b"0", b"1"]
DIGEST = pa.array([b"0" * 32, b"1" * 32])


@pytest.mark.parametrize(
    ("columns", "taken", "note"),
    [
        ({"jpg": BYTES, "caption": ["a", "b"]}, {"image": "jpg"}, "the image from 'jpg'."),
        ({"scan": BYTES, "class": [1, 2]}, {"image": "scan", "label": "class"}, "'scan' and the label from 'class'."),
        ({"image": BYTES, "png": BYTES, "label": ["a", "b"]}, {"image": "image", "label": "label"}, None),
        ({"IMG": BYTES, "sha256": DIGEST, "split": ["val", None]}, {"image": "IMG", "split": "split"}, "from 'IMG'."),
        ({"path": ["x", "y"], "content": BYTES, "Label": [1, 2]}, {"image": "content", "label": "Label"}, "'content'."),
    ],
)
def test_a_guess_is_said(tmp_path: Path, columns: Any, taken: dict[str, str], note: str | None) -> None:
    source = list_source(table(tmp_path / "t.parquet", **columns))
    assert [read(entry) for entry in source] == BYTES
    assert source.columns == taken
    guesses = [text for text in source.notes if "taken by their names" in text]
    assert len(guesses) == (note is not None) and all(text.endswith(note or "") for text in guesses)


def test_a_manifest_stays_one(tmp_path: Path) -> None:
    write_picture(tmp_path / "0.png", 0)
    (entry,) = list_source(table(tmp_path / "m.parquet", path=["0.png"], sha256=[b"0" * 32]))
    assert entry.uri == uri_of(tmp_path / "0.png")
    (entry,) = list_source(table(tmp_path / "old.parquet", image=[b"0.png"], label=["a"]))  # text without its type
    assert (entry.uri, entry.label) == (uri_of(tmp_path / "0.png"), "a")
    (entry,) = list_source(table(tmp_path / "t.parquet", where=["0.png"], what=["a"]), Hints(True, "where", "what"))
    assert (entry.uri, entry.label) == (uri_of(tmp_path / "0.png"), "a")


def test_columns_are_taken_as_asked(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", image=BYTES, mask=[b"2", b"3"], label=["a", "b"], species=["c", "d"])
    source = list_source(path, Hints(True, "mask", "species"))
    entries = list(source)
    assert [read(entry) for entry in entries] == [b"2", b"3"] and [entry.label for entry in entries] == ["c", "d"]
    assert entries[0].uri == f"{uri_of(path)}#mask/0" and not source.notes
    odd = table(tmp_path / "o.parquet", **{"my image/jpg #1 é": BYTES, "other": BYTES})
    entry = list(list_source(odd, Hints(True, "my image/jpg #1 é")))[1]
    assert entry.uri.endswith("#my%20image/jpg%20%231%20%C3%A9/1") and read(entry) == b"1"
    assert places.canonical(entry.uri) == entry.uri


@pytest.mark.parametrize(
    ("columns", "hints", "sentence"),
    [
        ({"a": [1], "b": ["x"]}, Hints(), "lists no images. Expected: a column path or uri (or file_name, image …), or "
         "one of image bytes. Got: 'a', 'b'."),
        ({"jpg": [b""], "png": [b""]}, Hints(), "several columns may hold the image: 'jpg', 'png'. "
         "Name one with --image-column."),
        ({"image": [[1, 2]]}, Hints(), "lists no images"),
        ({"image": [[b"1"]]}, Hints(True, "image"), "Expected: binaries in the column 'image', or paths. "
         "Got: list<element: binary>."),
        ({"image": [b""]}, Hints(True, "jpg"), "has no column 'jpg' that can be read. Its columns are 'image'."),
        ({"image": [b""], "a": ["x"]}, Hints(True, None, "b"), "has no column 'b' that can be read. "
         "Its columns are 'a'."),
        ({"image": [b""], "class": ["x"], "target": [1]}, Hints(), "several columns may hold the label: 'class', "
         "'target'. Rename the right one to label, or name it with --label-column."),
        ({"image": [b""], "split": ["later"]}, Hints(), "row 0: Expected: split train, val or test. Got: 'later'."),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_taken_is_told(tmp_path: Path, columns: Any, hints: Hints, sentence: str) -> None:
    path = table(tmp_path / "t.parquet", **columns)
    with pytest.raises(SourceError) as caught:
        list(list_source(path, hints))
    assert sentence in str(caught.value) and str(path) in str(caught.value)


def test_an_arrow_file_without_images_lists_its_columns(tmp_path: Path) -> None:
    write_arrow(False, 9)(pa.table({"path": ["a.jpg"], "n": [1]}), tmp_path / "t.arrow")
    with pytest.raises(SourceError, match=r"has no column of image bytes. Got: 'path: string', 'n: int64'\."):
        list(list_source(tmp_path / "t.arrow"))


def test_classes_of_hugging_face_are_names(tmp_path: Path) -> None:
    names = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    features = {"image": {"_type": "Image"}, "fine": names, "n": {"_type": "Value", "dtype": "int64"}}
    path = hugging_face(tmp_path / "t.parquet", features, image=BYTES * 2, fine=[1, None, -1, 0], n=[1, 2, 3, 4])
    source = list_source(path)
    assert [entry.label for entry in source] == ["dog", None, None, "cat"] and source.columns["label"] == "fine"
    hugging_face(path, features, image=BYTES, fine=[0, 2])
    with pytest.raises(SourceError, match=r"from row 0 on: Expected: a label from 0 to 1, or -1 for none. Got: 2\."):
        list(list_source(path))
    for broken in ({"fine": {"_type": "ClassLabel"}}, {"fine": {"_type": "ClassLabel", "names": "x"}}, [1], "x", None):
        hugging_face(path, broken, image=BYTES, fine=[0, 2], label=[5, 6])
        assert [entry.label for entry in list_source(path)] == ["5", "6"]


# --- folders of tables


def test_a_folder_with_images_in_it_is_a_folder(tmp_path: Path) -> None:
    table(tmp_path / "features.parquet", image=BYTES)
    write_picture(tmp_path / "a" / "0.png", 0)
    assert list_source(tmp_path).kind == "folder"
    (tmp_path / "a" / "0.png").unlink()
    assert list_source(tmp_path).kind == "table"
    table(tmp_path / "features.parquet", path=["x"])
    assert list_source(tmp_path).kind == "folder"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00001", "validation-00000-of-00001"], ["train", "val"]),
        (["default/test/0000", "default/train/0000"], ["test", "train"]),
        (["dev_0", "other", "train.b"], ["val", None, "train"]),
        (["train-00000-of-00002", "train-00001-of-00002"], [None, None]),  # of no use without another
        (["trained", "tests"], [None, None]),
    ],
)
def test_splits_are_told_by_names(tmp_path: Path, names: list[str], splits: list[str | None]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table(tmp_path / f"{name}.parquet", image=[b"x"])
    assert [entry.split for entry in list_source(tmp_path)] == splits


def test_a_cell_says_more_than_the_name(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", image=BYTES, split=["test", None], group=["g", " "])
    table(tmp_path / "val.parquet", image=BYTES)
    source = list_source(tmp_path)
    assert said(source) == [(None, "test", "g"), (None, "train", None), (None, "val", None), (None, "val", None)]


def test_one_damaged_table_is_told_and_the_others_are_listed(tmp_path: Path) -> None:
    for name in "abc":
        table(tmp_path / f"{name}.parquet", image=BYTES)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    table(tmp_path / "c.parquet", n=[1])
    (tmp_path / "README.md").write_text("x")
    source = list_source(tmp_path)
    assert len(list(source)) == 2 and source.ignored == {".md": 1}
    assert source.incomplete == [uri_of(tmp_path / f"{name}.parquet") + "#" for name in "bc"]
    damaged, without = source.problems
    assert damaged.startswith(f"{tmp_path}/b.parquet cannot be read: ") and "has no column of image bytes" in without
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "c.parquet").unlink()
    with pytest.raises(NoPictures):
        list(Source(str(tmp_path), "table"))


# --- damage


@pytest.mark.parametrize("writer", WRITERS)
def test_a_table_that_is_cut_off_is_told(tmp_path: Path, writer: str) -> None:
    path = write([b"0" * 99, b"1" * 99, None], tmp_path / "t", writer, "struct", ["a", "b", None])
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        outcomes = outcome(path)
        assert outcomes == "listed" if length == len(whole) else outcomes


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_table_is_rows_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, writer: str, data: st.DataObject
) -> None:
    cells = [bytes([n]) * 30 for n in range(6)]
    path = write(cells, tmp_path_factory.mktemp("t") / "t", writer, "struct", list("abcdef"))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 8))
        damaged[at : at + data.draw(st.sampled_from([1, 4, 8]))] = data.draw(
            st.sampled_from(
                [b"\xff", b"\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", (3 * 2**30).to_bytes(8, "little")]
            )
        )
    path.write_bytes(damaged)
    outcome(path)


def outcome(path: Path) -> str:
    """List and read a damaged table; anything but the errors for it fails."""
    with suppress(SourceError):
        source = list_source(path)
        for entry in source:
            with suppress(ImageError):
                read(entry)
        return "listed"
    return "refused"


@pytest.mark.parametrize("cell", [b"x", "0.png"])
def test_a_column_whose_name_is_damaged_is_told(tmp_path: Path, cell: bytes | str) -> None:
    path = table(tmp_path / "t.parquet", path=[cell], name=["x"])
    path.write_bytes(path.read_bytes().replace(b"name", b"n\xffme"))
    with pytest.raises(SourceError, match="cannot be read"):
        list(list_source(path))


def test_a_damaged_row_group_costs_its_own_rows_and_one_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [os.urandom(5000) for _ in range(30)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": cells, "label": ["x"] * 30}), path, row_group_size=10, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 30_000] = b"\xff" * 30_000
    path.write_bytes(data)
    begun = []
    real = parquet_files._Column._begin
    monkeypatch.setattr(parquet_files._Column, "_begin", lambda self, group: begun.append(group) or real(self, group))
    found = []
    for entry in list_source(path):
        try:
            found.append(read(entry))
        except ImageError as error:
            assert error.error_type == "unreadable" and f"row {entry.offset} of" in str(error)
            found.append(b"")
    assert found[:10] == cells[:10] and found[20:] == cells[20:] and found[10:20] == [b""] * 10
    assert begun[-3:] == [0, 1, 2]


def test_rows_that_are_no_images_are_told(tmp_path: Path, engine: CountingEngine) -> None:
    picture = write_picture(tmp_path / "p.png", 1).read_bytes()
    path = table(tmp_path / "t.parquet", image=pa.array([picture, b"text", None, b"", picture]))
    result = embed(str(path), tmp_path / "store")
    assert (result.embedded, result.deduplicated, result.failures) == (1, 1, {"not_an_image": 1, "empty": 2})


def test_an_empty_table_has_no_images(tmp_path: Path) -> None:
    for path in (table(tmp_path / "t.parquet", image=pa.array([], pa.binary())), tmp_path / "t.arrow"):
        if path.suffix == ".arrow":
            write_arrow(True, 1)(pa.table({"image": pa.array([], pa.binary())}), path)
        with pytest.raises(NoPictures):
            list(list_source(path))


@pytest.mark.parametrize(
    "row", ["", "image", "image/", "image/-1", "image/01", "image/2", "mask/0", "label/0", "image/x"]
)
def test_a_row_that_is_not_there_has_vanished(tmp_path: Path, row: str) -> None:
    uri = f"{uri_of(table(tmp_path / 't.parquet', image=BYTES, label=[1, 2]))}#{row}"
    assert places.locate(uri) == Entry(uri, -1, 0)
    for gone in (uri, f"{uri_of(tmp_path / 'no.parquet')}#image/0"):
        with pytest.raises(ImageError) as caught:
            places.read(gone)
        assert caught.value.error_type == "vanished"


def test_deleted_rows_of_a_lance_table_do_not_count(tmp_path: Path) -> None:
    rows_of = pa.table({"image": [bytes([n]) for n in range(100)], "label": [str(n) for n in range(100)]})
    made = lance.write_dataset(rows_of, tmp_path / "t.lance", max_rows_per_file=30)
    made.delete("label = '3' or label = '50'")
    entries = list(list_source(f"{tmp_path}/t.lance/"))
    assert len(entries) == 98 and all(read(entry) == bytes([int(entry.label or "")]) for entry in entries)
    assert entries[0].size == 2 and entries[3].uri == f"{uri_of(tmp_path / 't.lance')}#image/3"


def test_a_damaged_lance_table_is_told(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"image": [b"x" * 999] * 9, "label": ["a"] * 9}), tmp_path / "t.lance")
    (entry, *_) = list_source(tmp_path / "t.lance")
    (file,) = (tmp_path / "t.lance/data").iterdir()
    rows.forget(uri_of(tmp_path / "t.lance"))
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(NoPictures, match=r"t.lance cannot be read: "):
        list(list_source(tmp_path / "t.lance"))
    with pytest.raises(ImageError) as caught:
        read(entry)
    assert caught.value.error_type == "unreadable"
    (tmp_path / "t.lance/_versions").rename(tmp_path / "gone")
    assert list_source(tmp_path / "t.lance").kind == "folder"


# --- through the store


def pictures(tmp_path: Path, numbers: Iterator[int] | range) -> list[bytes]:
    return [write_picture(tmp_path / "made" / f"{n}.png", n).read_bytes() for n in numbers]


@pytest.mark.parametrize("writer", ["parquet, small groups", "arrow stream", "lance"])
def test_a_table_written_anew_is_read_again_and_nothing_is_embedded(
    tmp_path: Path, engine: CountingEngine, writer: str
) -> None:
    cells, store = pictures(tmp_path, range(20)), tmp_path / "store"
    labels = ["ab"[n % 2] for n in range(21)]
    path = write(cells, tmp_path / "t", writer, "struct", labels[:20])
    first = embed(str(path), store, EmbedOptions(shard_images=7))
    assert (first.embedded, first.labels["classes"], engine.images) == (20, {"a": 10, "b": 10}, 20)
    again = embed(str(path), store)
    assert (again.unchanged, again.embedded) == (20, 0)
    write([*reversed(cells), pictures(tmp_path, range(20, 21))[0]], tmp_path / "t", writer, "struct", labels)
    moved = embed(str(path), store)
    assert (moved.changed, moved.new, moved.embedded, moved.deduplicated) == (20, 1, 1, 20) and engine.images == 21
    folder = embed(str(tmp_path / "made"), store)
    assert (folder.embedded, folder.deduplicated) == (0, 21)


def test_a_listing_opens_its_tables_anew(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", image=BYTES)
    (first, _) = list_source(path)
    assert read(first) == b"0"
    table(tmp_path / "other.parquet", image=[b"second", b"third"]).replace(path)
    (first, _) = list_source(path)
    assert read(first) == b"second"


def test_a_table_that_changes_during_the_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = pictures(tmp_path, range(3))
    path = table(tmp_path / "t.parquet", image=cells)
    monkeypatch.setattr(rows, "SECONDS_BETWEEN_CHECKS", 0.0)
    (entry, *_) = list_source(path)
    assert places.read(entry.uri)[0] == cells[0]
    table(tmp_path / "other.parquet", image=cells[::-1], n=[1, 2, 3]).replace(path)
    data, size, mtime_ns = places.read(entry.uri)
    assert data == cells[2] and (size, mtime_ns) != (entry.size, entry.mtime_ns)


def test_pictures_of_rows_are_in_the_report_predicted_and_brought_back(
    tmp_path: Path, engine: CountingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = []
    for n in range(40):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (6 * n, 0, 250 * (n % 2))).save(file, "PNG")
        cells.append(file.getvalue())
    path = table(tmp_path / "t.parquet", jpg=cells, kind=[f"c{n % 2}" for n in range(40)])

    def run(*arguments: object) -> Any:
        commands.app([*map(str, arguments), "--store", str(tmp_path / "store"), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    told = run("embed", path, "--label-column", "kind", "--image-column", "jpg")
    assert told["embedded"] == 40 and told["labels"]["classes"] == {"c0": 20, "c1": 20}
    result = run("compare", "--heads", "ncm,knn")
    assert Path(result["report"]).read_text().count("data:image/jpeg;base64,") > 3
    uri = f"{uri_of(path)}#jpg/7"
    (prediction,) = predict([uri], tmp_path / "store", head_id=result["winner"]["head_id"])
    assert (prediction.uri, prediction.label) == (uri, "c1")
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"uri,label\n{uri},x\n{uri_of(path)}#jpg/40,x\n")
    there, gone = list_source(manifest)
    assert (there.offset, gone.size) == (7, -1) and read(there) == cells[7]
    assert len(FeatureStore(tmp_path / "store").dataset()) == 40
