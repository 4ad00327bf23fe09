"""Folders whose images a metadata file speaks of, as Hugging Face's ImageFolder has them.

The layouts are those of https://huggingface.co/docs/datasets/image_dataset#imagefolder; ``load_dataset("imagefolder")``
of datasets 5.2.0 gives the images of ``LAYOUTS`` the same splits and labels, but for a file above the splits, which it
does not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import write_picture
from featurestore.errors import SourceError
from object_proxy import proxy
from object_servers import ObjectServer
from pipelines.sources.corpus import Source, list_source
from pipelines.sources.listing import Hints

LAYOUTS = {
    "one file at the root": {"metadata.parquet": {"0.png": "cat", "sub/1.png": "dog"}},
    "one file per split": {"train/metadata.csv": {"0.png": "cat", "1.png": "dog"}, "test/metadata.csv": {"2.png": "x"}},
    "one file above the splits": {"metadata.csv": {"train/0.png": "cat", "test/1.png": "dog"}},
    "it wins over folders": {"metadata.jsonl": {"a/0.png": "cat", "b/1.png": "2020-01-01"}},
}  # fmt: skip


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")


def said(source: Source) -> dict[str, tuple[str | None, str | None]]:
    return {unquote(e.uri.removeprefix(f"{source.uri}/")): (e.label, e.split) for e in source}


@pytest.fixture(params=["disk", "s3"])
def lists(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Source]:
    """Return what lists the files of ``tmp_path`` where they are, or in a bucket."""
    if request.param == "disk":
        return lambda **hints: list_source(str(tmp_path), Hints(**hints))
    server, bucket = request.getfixturevalue("seaweedfs"), request.getfixturevalue("bucket")

    def list_copy(**hints: Any) -> Source:
        for file in (path for path in tmp_path.rglob("*") if path.is_file()):
            obstore.put(server.store(bucket), f"a b/{file.relative_to(tmp_path)}", file.read_bytes())
        return list_source(f"s3://{bucket}/a b", Hints(**hints))

    return list_copy


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_file_says_wins(tmp_path: Path, layout: str, lists: Callable[..., Source]) -> None:
    expected = {}
    for name, rows in LAYOUTS[layout].items():
        folder = (tmp_path / name).parent
        write(tmp_path / name, [{"file_name": file, "label": label} for file, label in rows.items()])
        for file, label in rows.items():
            inside = str((write_picture(folder / file, 0)).relative_to(tmp_path))
            expected[inside] = (label, inside.split("/")[0] if inside.startswith(("train/", "test/")) else None)
    source = lists()
    assert said(source) == expected and source.columns == {"path": "file_name", "label": "label"}
    assert source.kind in ("folder", "prefix")
    assert not any("name no image" in note or "no row" in note or "not read" in note for note in source.notes)


def test_without_splits_their_folders_are_classes(tmp_path: Path) -> None:
    for name in ("train/0.png", "train/1.png", "test/2.png"):
        write_picture(tmp_path / name, 0)
    write(tmp_path / "train/metadata.csv", [{"file_name": "0.png", "label": "cat"}])
    assert said(list_source(str(tmp_path), Hints(split_folders=False))) == {
        "test/2.png": ("test", None), "train/0.png": ("cat", None), "train/1.png": ("train", None),
    }  # fmt: skip


def test_the_nearest_file_speaks(tmp_path: Path) -> None:
    for name in ("0.png", "in/1.png", "in/deep/2.png"):
        write_picture(tmp_path / name, 0)
    write(tmp_path / "metadata.csv", [{"file_name": n, "label": "far"} for n in ("0.png", "in/1.png")])
    rows = [
        {"file_name": n, "kind": k, "split": "val", "group": "g"} for n, k in (("1.png", "near"), ("deep/2.png", None))
    ]
    write(tmp_path / "in/metadata.jsonl", rows)
    with pytest.raises(SourceError, match=r"metadata.csv has no column 'kind'"):
        list(list_source(tmp_path, Hints(label_column="kind")))
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,far\nin/1.png,far\n")
    source = list_source(str(tmp_path), Hints(label_column="kind"))
    assert said(source) == {"0.png": ("far", None), "in/1.png": ("near", "val"), "in/deep/2.png": (None, "val")}
    assert f"1 rows of {tmp_path}/metadata.csv name no image that is there." in source.notes


def test_a_file_too_deep_in_a_bucket_is_told_and_not_read(
    tmp_path: Path, request: pytest.FixtureRequest, lists: Callable[..., Source]
) -> None:
    for name in ("train/cat/0.png", "test/cat/1.png", "test/.aside/2.png"):
        write_picture(tmp_path / name, 0)
    for folder in ("train/cat", "test/cat", "test/.aside"):
        write(tmp_path / folder / "metadata.csv", [{"file_name": n, "label": "dog"} for n in ("0.png", "1.png")])
    source = lists()
    read = "disk" in request.node.name
    label = "dog" if read else "cat"
    assert said(source) == {"train/cat/0.png": (label, "train"), "test/cat/1.png": (label, "test")}
    told = (
        "'test/cat/metadata.csv' was not read: in a bucket, metadata files are looked for at the top and in the "
        "folders of splits."
    )
    assert (told in source.notes) != read


@pytest.mark.parametrize("lists", ["s3"], indirect=True)
def test_a_bucket_is_asked_for_metadata_once_per_folder(
    tmp_path: Path, lists: Callable[..., Source], seaweedfs: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        write_picture(tmp_path / f"{('train', 'test')[number % 2]}/{number}.png", number)
    source = lists()
    with proxy(seaweedfs.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        assert len(list(source)) == 9
    asked = [path for _, path in made.requests if "metadata." in path]
    assert len(asked) == len(set(asked)) == 3 * len(["", "train", "test"])


def test_what_it_does_not_say_is_as_the_folders_say(tmp_path: Path) -> None:
    for name in ("cat/0.png", "dog/1.png"):
        write_picture(tmp_path / name, 0)
    write(
        tmp_path / "metadata.csv", [{"file_name": "cat/0.png", "text": "a cat"}, {"file_name": "gone.png", "text": "x"}]
    )
    source = list_source(str(tmp_path))
    assert said(source) == {"cat/0.png": ("cat", None), "dog/1.png": ("dog", None)}
    assert source.notes[-2:] == [
        f"1 images stand in no row of {tmp_path}/metadata.csv.",
        f"1 rows of {tmp_path}/metadata.csv name no image that is there.",
    ]


@pytest.mark.parametrize(
    "text", ["", "file,label\n0.png,x\n", "\0", "[1]", "{", '{"file_name"', "[" * 100_000, '{"a": 1}', "PAR1"]
)
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_any_other_file_of_that_name_says_nothing(tmp_path: Path, name: str, text: str) -> None:
    write_picture(tmp_path / "cat/0.png", 0)
    (tmp_path / name).write_text(text)
    source = list_source(str(tmp_path))
    assert said(source) == {"cat/0.png": ("cat", None)} and source.ignored == {Path(name).suffix: 1}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("metadata.csv", "file_name,label\n,x\n", "row 1: the file_name is empty."),
        ("metadata.csv", "file_name,label\n0.png,x\n./0.png,y\n", "row 2: './0.png' has other values here than"),
        ("metadata.csv", "file_name,split\n0.png,later\n", "row 1: Expected: split train, val or test. Got: 'later'."),
        ("metadata.csv", "file_name,label\n0.png\n", "Expected: 2 fields"),
        ("metadata.csv", "file_name,class,target\n0.png,x,y\n", "or name it with --label-column"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "x"}\n{"file_name"', "cannot be read: "),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "x"}\n{"file_name": 1}\n', "cannot be read: "),
        ("metadata.jsonl", '{"file_name": ["0.png"]}\n', "cannot be read: "),
    ],
)
def test_a_file_that_is_wrong_is_told(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    write_picture(tmp_path / "cat/0.png", 0)
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError) as caught:
        list(list_source(tmp_path))
    assert sentence in str(caught.value) and f"{tmp_path}/{name}" in str(caught.value)
