"""What a source knows after a listing: its place, what could not be listed, and what was understood."""

import csv
import errno
import io
import itertools
import json
import os
import re
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import put, shard

from featurestore.errors import NoPictures, SourceError
from pipelines.sources import levels, listing, tars, uris
from pipelines.sources.class_names import notes_on_classes
from pipelines.sources.corpus import Source, list_source, member_of, path_of, source_uri, uri_of
from pipelines.sources.missing_files import why_missing


def said(source: Source) -> list[tuple[str, str | None, str | None]]:
    """(path below the source, label, split) of each entry."""
    root = os.path.abspath(source.location) + "/"  # noqa: PTH100
    return [(path_of(entry.uri).removeprefix(root), entry.label, entry.split) for entry in source]


# --- where a source is


def test_a_source_is_one_however_its_place_is_typed(tmp_path, monkeypatch):
    put(tmp_path / "my photos" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    uri = f"file://{tmp_path}/my%20photos"
    for typed in ("my photos", "./my photos/", "~/my photos", "x/../my photos", f"/{tmp_path}/my photos//", uri):
        assert source_uri(typed) == uri
        if not typed.startswith("x"):
            assert list_source(typed).uri == uri and len(list(list_source(typed))) == 1
    assert source_uri("gone/for ever") == f"file://{tmp_path}/gone/for%20ever"
    assert uri_of(f"/{tmp_path}/my photos/a.jpg") == f"{uri}/a.jpg"


def test_a_pattern_of_tars_is_one_readable_source(tmp_path):
    for number in range(2):
        shard(tmp_path / f"s {number}.tar", {"1.jpg": "x"})
    pattern = f"{tmp_path}/s {{0,1}}.tar"
    source = list_source(pattern)
    assert source.uri == source_uri(pattern) == source_uri(source.uri) == f"file://{tmp_path}/s%20{{0,1}}.tar"
    assert len(list(source)) == 2
    assert source_uri("/a{b}") == "file:///a%7Bb%7D"


def test_one_picture_is_no_corpus(tmp_path):
    put(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=rf"a single image: name the folder that holds it, {tmp_path}\."):
        list_source(tmp_path / "a.jpg")


def test_nothing_found_is_an_error_of_its_own(tmp_path):
    for path in (tmp_path, put(tmp_path / "m.csv", b"path\n"), put(tmp_path / "s.tar", bytes(1024))):
        with pytest.raises(NoPictures, match="has no images"):
            list(list_source(path))


# --- what could not be listed


def fail(monkeypatch, function: str, error: int, ending: str) -> None:
    """Let an os function fail for paths with an ending."""
    real = getattr(os, function)

    def failing(path, *args, **options):
        if os.fspath(path).endswith(ending) if not isinstance(path, int) else False:
            raise OSError(error, os.strerror(error))
        return real(path, *args, **options)

    monkeypatch.setattr(os, function, failing)


@pytest.mark.parametrize("function", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch, function):
    for name in ("cat", "dog"):
        put(tmp_path / name / "1.jpg")
    fail(monkeypatch, function, errno.EIO, "dog")
    source = list_source(tmp_path)
    assert said(source) == [("cat/1.jpg", "cat", None)]
    assert source.incomplete == [uri_of(tmp_path / "dog") + "/"] and len(source.problems) == 1
    monkeypatch.undo()
    assert len(list(source)) == 2 and not source.incomplete and not source.problems


def test_a_root_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    put(tmp_path / "photos/1.jpg")
    source = list_source(tmp_path / "photos")
    fail(monkeypatch, "scandir", errno.EACCES, "photos")
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        list(source)
    fail(monkeypatch, "stat", errno.EACCES, "photos")
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        list_source(tmp_path / "photos")


class Scan:
    """os.scandir with faults: it dies half-way, or an item cannot tell what it is."""

    def __init__(self, real, dies: bool, error: int) -> None:
        self.real, self.dies, self.error = real, dies, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.real.close()

    def __iter__(self):
        for item in self.real:
            yield Item(item, self.error)
            if self.dies:
                raise OSError(errno.EIO, "Input/output error")


class Item:
    def __init__(self, real: os.DirEntry, error: int) -> None:
        self.name, self.path, self.is_symlink = real.name, real.path, real.is_symlink
        self._real, self._error = real, error

    def is_dir(self) -> bool:
        if self._error and self.name.startswith("lost"):
            raise OSError(self._error, os.strerror(self._error))
        return self._real.is_dir()

    def is_file(self, *, follow_symlinks: bool) -> bool:
        if self._error and self.name.startswith("lost"):
            raise OSError(self._error, os.strerror(self._error))
        return self._real.is_file(follow_symlinks=follow_symlinks)


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_sub_folder_that_cannot_be_told_from_a_file_is_not_empty(tmp_path, monkeypatch, error):
    for name in ("cat/1.jpg", "lost/1.jpg", "lost.jpg"):
        put(tmp_path / name)
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Scan(real(path), False, error))
    source = list_source(tmp_path)
    assert ("lost/1.jpg", "lost", None) in said(source)  # it can be reached after all
    fail(monkeypatch, "stat", error, "lost")
    assert said(source) == [("lost.jpg", None, None), ("cat/1.jpg", "cat", None)]
    assert sorted(source.incomplete) == sorted(uri_of(tmp_path / name) + "/" for name in ("lost", "lost.jpg"))
    assert len(source.problems) == 2


def test_a_folder_whose_listing_dies_half_way_is_not_empty(tmp_path, monkeypatch):
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        put(tmp_path / name)
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Scan(real(path), path.endswith("dog"), 0))
    source = list_source(tmp_path)
    assert said(source) == [("cat/1.jpg", "cat", None)]
    assert source.incomplete == [uri_of(tmp_path / "dog") + "/"]


def test_links_to_what_is_not_there_may_have_been_folders(tmp_path):
    put(tmp_path / "cat/1.jpg")
    (tmp_path / "dog").symlink_to(tmp_path / "mount/dog")
    (tmp_path / "cat/loop").symlink_to(tmp_path / "cat/loop")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "cat/2.jpg").symlink_to(tmp_path / "gone.jpg")  # an image that will fail
    (tmp_path / ".#lock").symlink_to("somebody@somewhere")
    source = list_source(tmp_path)
    assert said(source) == [("cat/1.jpg", "cat", None), ("cat/2.jpg", "cat", None)]
    assert sorted(source.incomplete) == [uri_of(tmp_path / name) + "/" for name in ("cat/loop", "cat/up", "dog")]
    assert len(source.problems) == 3 and source.missing == 1


def test_a_split_folder_that_is_away_is_still_one(tmp_path):
    for name in ("train/cat/1.jpg", "mount/val/cat/2.jpg"):
        put(tmp_path / name)
    put(tmp_path / "corpus/x.txt")
    (tmp_path / "train").rename(tmp_path / "corpus/train")
    (tmp_path / "corpus/val").symlink_to(tmp_path / "mount/val")
    source = list_source(tmp_path / "corpus")
    assert said(source) == [("train/cat/1.jpg", "cat", "train"), ("val/cat/2.jpg", "cat", "val")]
    (tmp_path / "mount").rename(tmp_path / "away")
    assert said(source) == [("train/cat/1.jpg", "cat", "train")]
    assert source.incomplete == [uri_of(tmp_path / "corpus/val") + "/"]


def test_what_could_not_be_listed_is_remembered_in_bounded_memory(tmp_path, monkeypatch):
    put(tmp_path / "a.jpg")
    for number in range(8):
        (tmp_path / f"link{number}").symlink_to("nothing")
    monkeypatch.setattr(listing, "MAX_INCOMPLETE", 5)
    source = list_source(tmp_path)
    assert len(list(source)) == 1
    assert len(source.incomplete) == 5 and source.incomplete[-1] == listing.ANYWHERE == ""


def test_a_tar_that_is_cut_off_or_cannot_be_read_is_not_empty(tmp_path, monkeypatch):
    good = shard(tmp_path / "s0.tar", {"1.jpg": "x", "1.cls": "cat"})
    cut = put(tmp_path / "s1.tar", shard(tmp_path / "whole.tar", {"2.jpg": "y" * 2000}).read_bytes()[:1500])
    pattern = f"{tmp_path}/s{{0..1}}.tar"
    source = list_source(pattern)
    assert [member_of(entry.uri) for entry in source] == ["1.jpg", "2.jpg"]
    assert source.incomplete == [uri_of(cut) + "#"] and "cut off" in source.problems[0]
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: bad() if at else real(fd, size, at))

    def bad():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(NoPictures):
        list(source)
    assert source.incomplete == [uri_of(good) + "#", uri_of(cut) + "#"] and len(source.problems) == 2


# --- counts


def test_a_listing_is_counted(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        put(tmp_path / name)
    text = b"path,label,split\na.jpg,cat,train\nb.jpg,,valid\nc.jpg,cat,train\nd.jpg,dog,\n"
    source = list_source(put(tmp_path / "m.csv", text))
    for _ in range(2):
        list(source)
        assert source.classes == {"cat": 2, "dog": 1} and source.unlabelled == 1 and source.labelled == 3
        assert source.splits == {"train": 2, "val": 1} and source.missing == 1
        assert source.columns == {"path": "path", "label": "label", "split": "split"}
        assert isinstance(source.classes, Counter) and not source.notes and not source.incomplete


# --- folders above the classes

SPLIT_FOLDERS = {
    "train/cat/1.jpg": ("cat", "train"),
    "Validation/cat/2.jpg": ("cat", "val"),
    "Validation/dog/deep/3.jpg": ("dog", "val"),
    "test/4.jpg": (None, "test"),
}


def folder(root: Path, *paths: str) -> Source:
    for path in paths:
        put(root / path)
    return list_source(root)


def listed(source: Source) -> dict[str, tuple[str | None, str | None]]:
    return {path: (label, split) for path, label, split in said(source)}


def test_split_folders_are_splits(tmp_path):
    source = folder(tmp_path, *SPLIT_FOLDERS, "train/cat/x_nohash_1.jpg", "@eaDir/x.jpg", ".git/x.jpg", "read.me")
    assert listed(source) == SPLIT_FOLDERS | {"train/cat/x_nohash_1.jpg": ("cat", "train")}
    assert [entry.group for entry in source if entry.group] == ["cat/x"]
    assert source.classes == {"cat": 3, "dog": 1} and source.splits == {"train": 2, "val": 2, "test": 1}
    (note,) = source.notes
    assert "are taken for splits" in note and "'Validation'" in note and "--no-split-folders" in note
    source = list_source(tmp_path, listing.Hints(split_folders=False))
    assert {split for _, split in listed(source).values()} == {None} and not source.notes
    assert source.classes == {"train": 2, "Validation": 2, "test": 1}


@pytest.mark.parametrize(
    ("paths", "classes", "words"),
    [
        (("train/1.jpg", "val/1.jpg"), {"train", "val"}, "no class folders in them"),
        (("train/cat/1.jpg", "test/cat/1.jpg", "extra/1.jpg"), {"train", "test", "extra"}, "such as 'extra'"),
        (("train/cat/1.jpg", "test/cat/1.jpg", "a.jpg"), {"train", "test"}, "images beside them"),
        (("train/1.jpg", "bus/1.jpg"), {"train", "bus"}, None),  # means of transport
        (("train/a/1.jpg", "training/a/1.jpg"), {"train", "training"}, None),
    ],
)
def test_split_folders_in_doubt_are_classes(tmp_path, paths, classes, words):
    source = folder(tmp_path, *paths)
    assert {label for label, _ in listed(source).values() if label} == classes and not source.splits
    assert [words in note for note in source.notes] == ([] if words is None else [True])


def test_wrappers_are_looked_through(tmp_path):
    source = folder(tmp_path, *(f"archive/data/{path}" for path in SPLIT_FOLDERS), "archive/notes.txt", "@eaDir/x.jpg")
    assert listed(source) == {f"archive/data/{path}": values for path, values in SPLIT_FOLDERS.items()}
    assert ["'archive' is the only folder" in source.notes[0], "'data'" in source.notes[1], len(source.notes)] == [
        True,
        True,
        3,
    ]
    assert source.ignored == {".txt": 1, "system folder": 1}


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (("cat/1.jpg",), {"cat"}),
        (("cat/1.jpg", "cat/deep/2.jpg"), {"cat"}),
        (("a.jpg", "wrap/cat/1.jpg"), {None, "wrap"}),
        (("wrap/cat/1.jpg", "other/x.txt"), {"wrap"}),
        (("train/cat/1.jpg", "train/dog/1.jpg"), {"cat", "dog"}),  # one split folder is a wrapper
    ],
)
def test_what_is_no_wrapper(tmp_path, paths, labels):
    source = folder(tmp_path, *paths)
    assert {label for label, _ in listed(source).values()} == labels and not source.splits


def test_system_folders_are_no_classes(tmp_path):
    aside = ("@eaDir", "__MACOSX", "$Recycle.Bin", "System Volume Information", "lost+found", "#recycle")
    source = folder(tmp_path, "cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB.jpg", *(f"{name}/1.jpg" for name in aside))
    assert listed(source) == {"cat/1.jpg": ("cat", None)}
    assert source.ignored == {"system folder": 7}


NAMES = st.sampled_from(["train", "Val", "TEST", "dev", "cat", "dog", "1.jpg", "2.png", "@eaDir", "x.txt"])


@settings(max_examples=60)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=4).map(tuple), min_size=1, max_size=8))
def test_every_picture_is_listed_once_whatever_lies_above_it(tmp_path_factory, paths):
    root, expected = tmp_path_factory.mktemp("tree"), set()
    for parts in paths:
        path = root.joinpath(*parts[:-1], parts[-1] if "." in parts[-1] else parts[-1] + "/3.gif")
        try:
            put(path)
        except OSError:  # a file where a folder should be
            continue
        if "@eaDir" not in parts[:-1] and parts[-1] != "@eaDir" and path.suffix != ".txt":
            expected.add(str(path.relative_to(root)))
    for split_folders in (True, False):
        source = list_source(root, listing.Hints(split_folders))
        try:
            found = said(source)
        except NoPictures:
            found = []
        assert sorted(path for path, _, _ in found) == sorted(expected)
        for path, label, split in found:
            above = path.split("/")[:-1]
            assert label is None or label in above
            assert split is None or (split_folders and split in {listing.SPLITS.get(part.lower()) for part in above})
    assert levels.MAX_WRAPPERS >= 2


# --- classes


def test_classes_that_look_alike_are_pointed_out(tmp_path):
    nfd = unicodedata.normalize("NFD", "café")
    rows = ["cat", "cat ", "Cat", "café", nfd, "dog", " owl", "nan"]
    text = "path,label\n" + "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(rows))
    put(tmp_path / "0.jpg")
    source = list_source(put(tmp_path / "m.csv", text.encode()))
    assert [entry.label for entry in source] == rows
    alike, blank, nothing = source.notes
    assert "'Cat' (1) and 'cat' (1) and 'cat ' (1)" in alike
    assert r"'cafe\u0301' (1) and 'caf\xe9' (1)" in alike and "dog" not in alike
    assert "' owl'" in blank and "1 of 8" in blank and "'nan' is taken for a class" in nothing


def test_a_class_for_each_picture_is_doubted(tmp_path):
    text = "path,label\n" + "".join(f"{i}.jpg,{i}\n" for i in range(21))
    source = list_source(put(tmp_path / "m.csv", text.encode()))
    list(source)
    assert source.notes == ["There are 21 classes for 21 labelled images: is this the label?"]
    assert list(notes_on_classes(Counter({"1.0": 2, "12.0": 1}))) == [
        "The classes are numbers such as '1.0', as pandas writes whole numbers with gaps."
    ]


# --- columns


def csv_source(tmp_path: Path, text: str, name: str = "m.csv") -> Source:
    put(tmp_path / "1.jpg")
    return list_source(put(tmp_path / name, text.encode()))


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (
            "\ufeff Path ,LABEL, Split,GROUP ",
            {"path": " Path ", "label": "LABEL", "split": " Split", "group": "GROUP "},
        ),
        ("file_name,class", {"path": "file_name", "label": "class"}),
        ("File Name,Category", {"path": "File Name", "label": "Category"}),
        ("Image,target", {"path": "Image", "label": "target"}),
        ("image_path,label_name", {"path": "image_path", "label": "label_name"}),
        ("filepaths,labels", {"path": "filepaths", "label": "labels"}),
        ("path,filename,label,class", {"path": "path", "label": "label"}),
        ("path,label,Label,PATH", {"path": "path", "label": "label"}),
        ("uri,x", {"path": "uri"}),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, header, columns):
    count = header.count(",") + 1
    row = ["train" if name.strip().lower() == "split" else "1.jpg" for name in header.split(",")]
    source = csv_source(tmp_path, f"{header}\n{','.join(row)}\n")
    (entry,) = source
    assert source.columns == columns and len(row) == count
    assert entry.uri == uri_of(tmp_path / "1.jpg") and entry.label == ("1.jpg" if "label" in columns else None)
    guessed = {role for role, name in columns.items() if name.strip().lower() not in (role, "uri")}
    assert ("taken by" in " ".join(source.notes)) == bool(guessed)
    assert ("no column for the label" in " ".join(source.notes)) == ("label" not in columns)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("filename,image", "several columns may hold the path: 'filename', 'image'. Rename the right one to path"),
        ("path,class,target", "several columns may hold the label: 'class', 'target'. Rename the right one to label"),
        ("Path,PATH", "several columns may hold the path: 'Path', 'PATH'"),
        ("path,class,class", "column class twice"),
        ("path;label", "the columns are separated by semicolons"),
        ("file name;class;x", "the columns are separated by semicolons"),
        ("path\tlabel", "the columns are separated by tabs"),
        ('"path,label', "lines 1 to 2: a quote"),
        ('"path\n",label', "lines 1 to 2: a column's name holds a line break"),
    ],
)
def test_headers_in_doubt(tmp_path, header, words):
    with pytest.raises(SourceError, match=words):
        list(csv_source(tmp_path, header + "\n" + ",".join("abc"[: header.count(",") + 1]) + "\n"))


def test_columns_of_parquet(tmp_path):
    put(tmp_path / "0.jpg")
    labels = {
        "floats": (pa.array([1.0, None, float("nan"), 2.5]), ["1", None, None, "2.5"]),
        "half": (pa.array([1, None, 3, 4], pa.float16()), ["1", None, "3", "4"]),
        "whole": (pa.array([7, None, 0, -1], pa.int64()), ["7", None, "0", "-1"]),
        "categories": (pa.array(["a", None, "b", "a"]).dictionary_encode(), ["a", None, "b", "a"]),
        "numbers": (pa.array([3, 3, 4, None]).dictionary_encode(), ["3", "3", "4", None]),
        "levels": (pa.array([1.0, float("nan"), 2.5, None]).dictionary_encode(), ["1", None, "2.5", None]),
        "blanks": (pa.array(["", "  ", "a ", "NaN"]), [None, None, "a ", "NaN"]),
        "nothing": (pa.nulls(4), [None] * 4),
        "large": (pa.array(["a", "b", "c", "d"], pa.large_string()), ["a", "b", "c", "d"]),
    }
    for name, (column, expected) in labels.items():
        table = pa.table({"Filename": [f"{i}.jpg" for i in range(4)], "class": column, "image": [{"path": ""}] * 4})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
        source = list_source(tmp_path / f"{name}.parquet")
        assert [entry.label for entry in source] == expected, name
        assert source.columns == {"path": "Filename", "label": "class"} and source.unlabelled == expected.count(None)
    with pytest.raises(SourceError, match="cannot be read"):
        pq.write_table(pa.table({"path": ["a.jpg"], "label": [["cat"]]}), tmp_path / "list.parquet")
        list(list_source(tmp_path / "list.parquet"))
    with pytest.raises(SourceError, match="lists no images"):
        pq.write_table(pa.table({"image": [{"path": "0.jpg"}], "label": [1]}), tmp_path / "hf.parquet")
        list(list_source(tmp_path / "hf.parquet"))


def test_cells_of_blanks_are_empty_and_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = csv_source(tmp_path, "path,label,split,group\n~/1.jpg,  ,\t, \n")
    (entry,) = source
    assert (entry.size, entry.label, entry.split, entry.group) == (1, None, None, None)


# --- rows


def rows(count: int) -> list[str]:
    return ["path,label,note", *(f"{i}.jpg,cat,fine" for i in range(1, count + 1))]


@pytest.mark.parametrize(
    ("line", "other", "words"),
    [
        ('5.jpg,"cat,fine', "", "lines 6 to 31: a quote"),  # never closed
        ('5.jpg,"cat,fine', '9.jpg,dog",fine', "lines 6 to 10, row 5: the label holds a line break"),
        ('5.jpg,"cat,fine', '9.jpg,"dog",fine', "lines 6 to 10: a quote .*',' expected"),
        ('5.jpg,cat,"fine', '9.jpg,dog,fine"', "lines 6 to 10, row 5: field 3 holds what looks like a row, '6.jpg"),
        ('5.jpg,cat,"fine', '6.jpg,dog,fine"', "lines 6 to 7, row 5: field 3 holds what looks like a row"),
        ('"5.jpg,cat,fine', '9.jpg",dog,fine', "lines 6 to 10, row 5: the path holds a line break"),
        ("5.jpg,cat", "", "line 6, row 5: Expected: 3 fields, as in the header. Got: 2"),
        ("5.jpg,cat, a, b", "", "line 6, row 5: Expected: 3 fields, as in the header. Got: 4. A field that holds a c"),
        ("5.jpg,c\0at,fine", "", "line 6: it holds a NUL byte"),
        (",cat,fine", "", "line 6, row 5: the path is empty"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_no_row_is_swallowed(tmp_path, line, other, words, newline):
    lines = rows(30)
    lines[5] = line
    if other:
        lines[int(other.partition(".")[0].strip('"'))] = other
    for name, separator in (("m.csv", ","), ("m.tsv", "\t")):
        text = newline.join(lines) + newline
        text = text if separator == "," else text.replace(",", "\t")
        expected = words if separator == "," else words.replace("','", "'tab'").replace("a c", "a t")
        with pytest.raises(SourceError, match=expected) as caught:
            list(csv_source(tmp_path, text, name))
        assert str(caught.value).startswith(f"{tmp_path}/{name}")


def test_quotes_blank_lines_and_captions_that_are_sound(tmp_path):
    text = (
        'path,label,caption\r\n\r\n1.jpg,"a ""b"", c","two\nlines, and\nthree"\r\n  \r\n,,\r\n'
        '2.jpg,5" disk,it is 5"\r\n'
        '3.jpg,"x","see\n\nabove"\n'
    )
    source = csv_source(tmp_path, text)
    assert [(Path(path_of(e.uri)).name, e.label) for e in source] == [
        ("1.jpg", 'a "b", c'),
        ("2.jpg", '5" disk'),
        ("3.jpg", "x"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("path,label\n1.jpg,é\n".encode("utf-16"), "m.csv is UTF-16"),
        ("path,label\n1.jpg,é\n".encode("utf-16-le"), "line 1: it holds a NUL byte"),
        ("path,label\n1.jpg,x\n2.jpg,é\n".encode("latin-1"), "line 3: it is not UTF-8"),
        (b"PK\x03\x04 and so on", "m.csv is a zip or Excel file"),
        (b"path,label\n1.jpg," + b"x" * 2**21, "line 2: it is longer than|field larger than field limit"),
        (b"\n \n", "cannot be read: it is empty"),
    ],
)
def test_files_that_are_no_text_in_utf_8(tmp_path, data, words):
    with pytest.raises(SourceError, match=words):
        list(list_source(put(tmp_path / "m.csv", data)))


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n", exclude_categories=("Cs",)), max_size=8)


@settings(max_examples=100)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20), st.integers(0, 10**6), st.booleans())
def test_the_rows_read_are_the_rows_there(tmp_path_factory, cells, where, tabs):
    """One stray quote anywhere: every row is read as it stands, or the file is refused."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if tabs else ",", lineterminator="\n")
    writer.writerow(["path", "label", "note"])
    expected = [(f"{i}.jpg", (label.strip() and label) or None, note) for i, (label, note) in enumerate(cells)]
    writer.writerows((path, label or "", note) for path, label, note in expected)
    path = tmp_path_factory.mktemp("csv") / ("m.tsv" if tabs else "m.csv")
    whole = text.getvalue()
    path.write_bytes(whole.encode())
    assert [(Path(path_of(e.uri)).name, e.label) for e in list_source(path)] == [row[:2] for row in expected]
    at = where % (len(whole) + 1)
    path.write_bytes((whole[:at] + '"' + whole[at:]).encode())
    try:
        found = list(list_source(path))
    except SourceError:
        return
    assert len(found) == len(expected)


# --- why nothing is there


@pytest.mark.parametrize(
    ("written", "there", "words"),
    [
        (r"cat\1.jpg", "data/cat/1.jpg", r"backslashes, as on Windows; write 'cat\\\\1.jpg' as 'cat/1.jpg'"),
        (r"C:\pictures\1.jpg", "data/x.jpg", "hold backslashes"),
        ("cat/1", "data/cat/1.JPG", "lack their extension; .*1.JPG' is there"),
        ("cat/1.png", "data/cat/1.jpg", "another extension than the files"),
        (" cat/1.jpg", "data/cat/1.jpg", "blanks around the paths"),
        ("cat%20s/1.jpg", "data/cat s/1.jpg", "percent-encoded"),
        ("data/cat/1.jpg", "data/cat/1.jpg", "relative paths begin in the manifest's folder"),
        ("1.jpg", "data/images/1.jpg", "'1.jpg' is there as .*/data/images/1.jpg"),
        ("/elsewhere/cat/1.jpg", "data/cat/1.jpg", "is there as .*/data/cat/1.jpg"),
        ("cat/1.jpg", "data/dog/2.jpg", "cat/1.jpg' for one; relative paths begin"),
    ],
)
def test_the_likely_cause_is_named_when_no_file_is_there(tmp_path, written, there, words):
    put(tmp_path / there)
    text = f"path,label\n{written},x\n{written}2,x\n"
    source = list_source(put(tmp_path / "data/m.csv", text.encode()))
    assert len(list(source)) == source.missing == 2
    (problem,) = source.problems
    assert problem.startswith("None of the 2 files that") and not source.incomplete
    assert re.search(words, problem), problem
    put(tmp_path / "data/one.jpg", b"")  # an empty file is there
    put(tmp_path / "data/m.csv", text.encode() + b"one.jpg,x\n")
    assert len(list(source)) == 3 and not source.problems


# --- tars


def labels(source: Source) -> dict[str | None, str | None]:
    return {member_of(entry.uri): entry.label for entry in source}


def test_apple_double_members_do_not_part_a_sample(tmp_path):
    members = {}
    for number in range(3):
        for suffix, data in ((".jpg", "x"), (".cls", f"{number}")):
            members[f"a/._{number}{suffix}"] = "\0\5\x16\7"
            members[f"a/{number}{suffix}"] = data
    members["__MACOSX/a/5.jpg"] = "x"
    source = list_source(shard(tmp_path / "s.tar", members))
    assert labels(source) == {f"a/{number}.jpg": str(number) for number in range(3)}
    assert source.ignored == {"hidden": 6, "system folder": 1} and not source.notes and not source.problems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_labels_with_a_byte_order_mark(tmp_path, encoding):
    path = shard(
        tmp_path / "s.tar",
        {
            "1.jpg": "x",
            "1.cls": "café\r\n".encode(encoding),
            "2.jpg": "x",
            "2.json": json.dumps({"label": "dog", "group": " "}).encode(encoding),
        },
    )
    source = list_source(path)
    assert labels(source) == {"1.jpg": "café", "2.jpg": "dog"} and not source.problems
    assert {entry.group for entry in source} == {None}


def test_numbers_in_json_are_labels_as_in_parquet(tmp_path):
    values = {"1": 3, "2": 3.0, "3": float("nan"), "4": None, "5": " ", "6": 0}
    members = {}
    for name, value in values.items():
        members |= {f"{name}.jpg": "x", f"{name}.json": json.dumps({"label": value})}
    source = list_source(shard(tmp_path / "s.tar", members))
    assert list(labels(source).values()) == ["3", "3", None, None, None, "0"] and not source.problems


def test_a_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    path = shard(tmp_path / "s.tar", {"v1.0/1.seg.png": "x", "v1.0/1.jpg": "y", "v1.0/1.cls": "cat"})
    assert labels(list_source(path)) == {"v1.0/1.seg.png": "cat", "v1.0/1.jpg": "cat"}


@pytest.mark.parametrize("first", [".jpg", ".cls"])
def test_labels_that_lie_apart_from_their_pictures(tmp_path, first):
    later = ".cls" if first == ".jpg" else ".jpg"
    members = {f"{i}{first}": str(i % 3) for i in range(30)} | {f"{i}{later}": str(i % 3) for i in range(30)}
    members |= {"near.jpg": "x", "near.cls": "n", "alone.jpg": "x", "orphan.cls": "o"}
    source = list_source(shard(tmp_path / "s.tar", members))
    expected = {f"{i}.jpg": str(i % 3) for i in range(30)} | {"near.jpg": "n", "alone.jpg": None}
    assert labels(source) == expected and not source.problems
    missing, apart, orphan = source.notes
    assert missing == "1 of 32 images have no label in their tar, such as 'alone.jpg'."
    assert "30 samples were found elsewhere" in apart and orphan.startswith("1 samples")


def test_a_tar_is_looked_at_again_once_and_only_where_labels_lack(tmp_path, monkeypatch):
    looks = []
    real = tars.members
    monkeypatch.setattr(tars, "members", lambda blob: looks.append(1) or real(blob))
    list(list_source(shard(tmp_path / "s.tar", {f"{i}{end}": "x" for i in range(9) for end in (".jpg", ".cls")})))
    assert looks == [1]
    source = list_source(shard(tmp_path / "s.tar", {f"{i}.jpg": "x" for i in range(9)}))
    list(source)
    assert looks == [1, 1, 1] and not source.notes


@pytest.mark.parametrize("padding", [0, 512, 10240, 10**6 // 512 * 512])
def test_joined_tars_are_read_on(tmp_path, padding):
    one = shard(tmp_path / "1.tar", {"1.jpg": "one", "1.cls": "a"}).read_bytes()
    two = shard(tmp_path / "2.tar", {"2.jpg": "two", "2.cls": "b"}).read_bytes()
    source = list_source(put(tmp_path / "s.tar", one + bytes(padding) + two + bytes(padding)))
    assert labels(source) == {"1.jpg": "a", "2.jpg": "b"} and not source.problems
    assert [uris.read(entry.uri)[0] for entry in source] == [b"one", b"two"]
    for rest in (b"garbage" * 200, b"x"):
        put(tmp_path / "s.tar", one + bytes(padding) + rest)
        assert labels(source) == {"1.jpg": "a"}
        assert f"byte {len(one) + padding}" in source.problems[0] and len(source.incomplete) == 1


def test_a_hole_after_the_end_mark_is_not_read(tmp_path, monkeypatch):
    path = shard(tmp_path / "s.tar", {"1.jpg": "one"})
    reads = []
    real = os.pread
    os.truncate(path, 2**36)
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads.append(size) or real(fd, size, at))
    source = list_source(path)
    assert labels(source) == {"1.jpg": None} and not source.problems and sum(reads) < 2**20


def test_zeros_between_members_cost_what_they_are(tmp_path, monkeypatch):
    member = tarfile.TarInfo("1.jpg").tobuf(tarfile.USTAR_FORMAT)
    data = b"".join(member + bytes(512) for _ in range(2000))
    path, reads, real = put(tmp_path / "s.tar", data), [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads.append(size) or real(fd, size, at))
    with uris.open_blob(uri_of(path)) as blob:
        assert sum(1 for _ in tars.members(blob)) == 2000
    assert sum(reads) < 25 * len(data)


# --- sentences and limits of each kind of source


def test_wrappers_are_looked_through_to_a_depth(tmp_path):
    for depth, label in ((3, "cat"), (4, "cat"), (5, "w4")):
        root = tmp_path / str(depth)
        source = folder(root, "/".join([*(f"w{n}" for n in range(depth)), "cat", "1.jpg"]))
        assert {label for label, _ in listed(source).values()} == {label}
        above = [str(root.joinpath(*(f"w{m}" for m in range(n)))) for n in range(min(depth, 4))]
        end = "and was looked through: the folders in it are what counts."
        assert source.notes == [f"'w{n}' is the only folder in {path!r} {end}" for n, path in enumerate(above)]


def test_a_wrapper_that_cannot_be_read_or_is_a_class(tmp_path, monkeypatch):
    source = folder(tmp_path / "a", "only/notes.txt", "only/x.md")
    with pytest.raises(NoPictures):
        list(source)
    assert not source.notes and source.ignored == {".txt": 1, ".md": 1}
    source = folder(tmp_path / "b", "only/cat/1.jpg", "only/@eaDir/1.jpg", "loose.txt")
    assert listed(source) == {"only/cat/1.jpg": ("cat", None)}
    fail(monkeypatch, "scandir", errno.EIO, "only")
    with pytest.raises(NoPictures, match="only' cannot be read: Input/output error"):
        list(source)
    assert not source.notes and source.incomplete == [uri_of(tmp_path / "b" / "only") + "/"]


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (("train/1.jpg", "Val/2.jpg"), "'Val', 'train', since there are no class folders in them"),
        (
            ("train/@eaDir/1.jpg", "train/1.jpg", "val/2.jpg"),
            "'train', 'val', since there are no class folders in them",
        ),
        (("train/cat/1.jpg", "val/2.jpg", "3.jpg"), "'train', 'val', since there are images beside them"),
        (
            ("train/cat/1.jpg", "val/2.jpg", "x/3.jpg", "y/3.jpg"),
            "'train', 'val', since there are other folders beside them, such as 'x'",
        ),
    ],
)
def test_why_folders_are_classes_and_not_splits(tmp_path, paths, why):
    source = folder(tmp_path, *paths)
    list(source)
    assert source.notes == [f"Taken for classes, not for splits: {why}."] and not source.splits
    assert set(source.classes) >= {path.split("/")[0] for path in paths if path[:5].lower() in ("train", "val/2")}


def test_split_folders_are_told_by_their_names(tmp_path):
    source = folder(tmp_path, "train/cat/1.jpg", "Dev/2.jpg")
    assert listed(source) == {"Dev/2.jpg": (None, "val"), "train/cat/1.jpg": ("cat", "train")}
    assert source.notes == [
        "The folders 'Dev', 'train' are taken for splits; --no-split-folders takes them for classes."
    ]


def test_a_split_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    source = folder(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg")
    fail(monkeypatch, "scandir", errno.EIO, "val")
    assert listed(source) == {"train/cat/1.jpg": ("cat", "train")}
    assert source.incomplete == [uri_of(tmp_path / "val") + "/"]


def test_a_folder_that_cannot_be_looked_into_has_no_class_folders(tmp_path, monkeypatch):
    source = folder(tmp_path, "train/1.jpg", "val/cat/2.jpg")
    fail(monkeypatch, "scandir", errno.EIO, "val")
    assert listed(source) == {"train/1.jpg": ("train", None)}
    why_ = "since there are no class folders in them"
    assert source.notes == [f"Taken for classes, not for splits: 'train', 'val', {why_}."]


def test_pictures_of_one_scene_are_a_group_of_their_class(tmp_path):
    source = folder(tmp_path, "a_nohash_1.jpg", "cat/a_nohash_1_nohash_2.jpg", "cat/a.jpg", "cat/deep/b_nohash_.jpg")
    assert {Path(path_of(entry.uri)).name: entry.group for entry in source} == {
        "a_nohash_1.jpg": "/a",
        "a_nohash_1_nohash_2.jpg": "cat/a",
        "a.jpg": None,
        "b_nohash_.jpg": "cat/b",
    }


def test_odd_classes_in_words():
    """The thresholds, and each sentence whole."""
    few = Counter({str(n): 2 for n in range(20)})
    assert not list(notes_on_classes(few)) and not list(notes_on_classes(Counter({str(n): 1 for n in range(20)})))
    assert not list(notes_on_classes(few + Counter({"x": 2})))
    assert list(notes_on_classes(few + Counter({"x": 1}))) == [
        "There are 21 classes for 41 labelled images: is this the label?"
    ]
    alike = Counter({name: 1 for letter in "bcda" for name in (letter, letter.upper())})
    start = "Classes that differ only by case, blanks or Unicode form, each a class of its own: "
    assert list(notes_on_classes(alike)) == [
        f"{start}'B' (1) and 'b' (1); 'C' (1) and 'c' (1); 'D' (1) and 'd' (1), and 1 more."
    ]
    del alike["A"]
    assert list(notes_on_classes(alike)) == [f"{start}'B' (1) and 'b' (1); 'C' (1) and 'c' (1); 'D' (1) and 'd' (1)."]
    assert list(notes_on_classes(Counter({" a": 1, "b": 1, "c ": 1}))) == [
        "2 of 3 classes begin or end with a blank, such as ' a'."
    ]
    for nothing in ("nan", "None", "NULL", " n/a", "<NA>", "NaT"):
        assert list(notes_on_classes(Counter({"x": 1, nothing: 1234})))[-1] == (
            f"{nothing!r} is taken for a class (1,234 images); an empty cell means no label."
        )
    assert not list(notes_on_classes(Counter({"1.0": 1, "cat": 1}))) and not list(notes_on_classes(Counter({"1.5": 1})))
    assert not list(notes_on_classes(Counter()))


def test_very_many_classes_are_not_looked_at_one_by_one(monkeypatch):
    monkeypatch.setattr("pipelines.sources.class_names.MAX_CLASSES", 2)
    assert len(list(notes_on_classes(Counter({"a": 1, "A": 1})))) == 1
    assert not list(notes_on_classes(Counter({"a": 1, "A": 1, "b": 1})))


# --- columns and rows in words

PATHS = (
    *("file", "filename", "file_name", "File Names", "file-path", "filepaths", "image", "image_file", "ImageFileName"),
    *("image name", "image_path", "img", "img_file", "imgname", "IMG-PATH"),
)
LABELS = ("category", "category_name", "Class", "class-name", "label name", "labels", "target")


def test_every_name_of_a_column(tmp_path):
    for name in PATHS:
        source = csv_source(tmp_path, f"{name},label\n1.jpg,x\n")
        assert len(list(source)) == 1 and source.columns == {"path": name, "label": "label"}
        assert source.notes == [f"Columns were taken by their names: the path from {name!r}."]
    for name in LABELS:
        source = csv_source(tmp_path, f"path,{name}\n1.jpg,x\n")
        assert [entry.label for entry in source] == ["x"]
        assert source.notes == [f"Columns were taken by their names: the label from {name!r}."]
    source = csv_source(tmp_path, "file,class\n1.jpg,x\n")
    list(source)
    assert source.notes == ["Columns were taken by their names: the path from 'file' and the label from 'class'."]
    source = csv_source(tmp_path, "path,uri,split\n1.jpg,,\n")
    list(source)
    assert source.columns == {"path": "path", "split": "split"}
    assert source.notes == [f"{tmp_path}/m.csv has no column for the label; its columns are 'path', 'uri', 'split'."]


@pytest.mark.parametrize("count", [20, 21])
def test_columns_that_are_of_no_use_are_listed(tmp_path, count):
    names = [f"c{number}" for number in range(count)]
    shown = ", ".join(map(repr, names[:20])) + (" … (21 columns)" if count == 21 else "")
    with pytest.raises(SourceError) as caught:
        list(csv_source(tmp_path, ",".join(names) + "\n"))
    wanted = "Expected: a column path or uri (or file_name, image …)"
    assert str(caught.value) == f"{tmp_path}/m.csv lists no images. {wanted}. Got: {shown}."


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [("m.csv", "path|label", "bars"), ("m.tsv", "path,label", "commas"), ("m.tsv", "x;image", "semicolons")],
)
def test_other_separators_are_called_by_their_names(tmp_path, name, header, separator):
    with pytest.raises(SourceError) as caught:
        list(csv_source(tmp_path, header + "\n", name))
    assert str(caught.value) == (
        f"{tmp_path}/{name}, line 1: the columns are separated by {separator}. "
        "Expected: commas in a .csv file, tabs in a .tsv file."
    )


def test_a_row_of_parquet_is_named_by_its_number(tmp_path):
    path = tmp_path / "m.parquet"
    names, splits = ["1.jpg"] * 20_002 + ["2.jpg"], ["train"] * 20_002 + ["x"]  # in batches of 10,000
    pq.write_table(pa.table({"path": names, "split": splits}), path)
    with pytest.raises(SourceError, match=r"m\.parquet, row 20003: Expected: split train, val or test\. Got: 'x'\.$"):
        list(list_source(path))


def test_rows_are_named_by_their_lines(tmp_path):
    """The first line is the header's; a record that goes over lines is named by all of them."""
    for text, place in (
        ("path,split\n1.jpg,\n2.jpg,x\n", "line 3, row 2"),
        ("path,split\n\n\n1.jpg,x\n", "line 4, row 1"),
        ('path,split,note\n1.jpg,,"a\nb"\n2.jpg,x,\n', "line 4, row 2"),
        ('path,split,note\n1.jpg,x,"a\nb\nc"\n', "lines 2 to 4, row 1"),
    ):
        with pytest.raises(SourceError) as caught:
            list(csv_source(tmp_path, text))
        assert str(caught.value) == f"{tmp_path}/m.csv, {place}: Expected: split train, val or test. Got: 'x'."


@pytest.mark.parametrize(("given", "split"), [*listing.SPLITS.items(), (" Train ", "train"), ("", None), ("  ", None)])
def test_splits_by_all_their_names(given, split):
    assert listing.split_of(given, "x") == listing.split_of(given.upper(), "x") == split
    assert set(listing.SPLITS.values()) == {"train", "val", "test"}


def test_lines_have_a_length(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sources.manifests.MAX_LINE", 20)
    for length, good in ((19, True), (21, False), (50, False)):  # with the line's end
        source = csv_source(tmp_path, "path,label\n1.jpg," + "x" * (length - 7) + "\n")
        if good:
            assert len(list(source)) == 1
        else:
            with pytest.raises(SourceError, match=r"m\.csv, line 2: it is longer than 20 characters\.$"):
                list(source)


def test_other_files_are_called_by_their_names(tmp_path):
    for data, name in ((b"\xfe\xff\0p", "UTF-16"), (b"\xff\xfep\0", "UTF-16"), (b"PK\3\4", "a zip or Excel file")):
        with pytest.raises(SourceError) as caught:
            list(list_source(put(tmp_path / "m.csv", data)))
        wanted = "Expected: text in UTF-8 (in a spreadsheet: save as CSV UTF-8)"
        assert str(caught.value) == f"{tmp_path}/m.csv is {name}. {wanted}."


def test_what_only_looks_like_a_uri_is_a_path(tmp_path):
    for text in ("1://2.jpg", "a b://2.jpg", "~x.jpg", "file:2.jpg"):
        (entry,) = csv_source(tmp_path, f"path\n{text}\n")
        assert path_of(entry.uri) == os.path.normpath(f"{tmp_path}/{text}")
    for text in ("ftp://x/2.jpg", "HTTP+x-1.2://2.jpg"):
        with pytest.raises(SourceError) as caught:
            list(csv_source(tmp_path, f"path\n{text}\n"))
        wanted = "Expected: a path, or a URI that begins with file://, s3://, gs://, az://, https:// or http://"
        assert str(caught.value) == f"{tmp_path}/m.csv, line 2, row 1: {wanted}. Got: {text}."


# --- why nothing is there, each cause by itself


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The folder of a manifest; the working folder is another."""
    (tmp_path / "data").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    return tmp_path / "data"


def why(data: Path, *written: str) -> str:
    return why_missing([(text, os.path.join(data, text)) for text in written], str(data))  # noqa: PTH118


def test_each_cause_in_words(data):
    top = data.parent
    elsewhere = f"relative paths begin in the manifest's folder, {str(data)!r}; "
    for there, written, cause in (
        ("data/a/1.jpg", "a\\1.jpg", "the paths hold backslashes, as on Windows; write 'a\\\\1.jpg' as 'a/1.jpg'"),
        ("data/2.jpg", "2.jpg\t", "there are blanks around the paths, as in '2.jpg\\t'"),
        ("data/3.jpeg", "3", f"the paths lack their extension; '{data}/3.jpeg' is there"),
        ("data/4.TIFF", "4.jpg", f"the paths have another extension than the files; '{data}/4.TIFF' is there"),
        ("data/5 é.jpg", "5%20%C3%A9.jpg", "the paths are percent-encoded; write '5%20%C3%A9.jpg' as '5 é.jpg'"),
        ("photos/6.jpg", "6.jpg", f"{elsewhere}'6.jpg' is there as '{top}/photos/6.jpg'"),
        ("7.jpg", "7.jpg", f"{elsewhere}'7.jpg' is there as '{top}/7.jpg'"),
        ("data/sub/8.jpg", "8.jpg", f"{elsewhere}'8.jpg' is there as '{data}/sub/8.jpg'"),
        ("data/c/9.jpg", "/a/b/c/9.jpg", f"{elsewhere}'/a/b/c/9.jpg' is there as '{data}/c/9.jpg'"),
        ("data/sub/d/10.jpg", "x/d/10.jpg", f"{elsewhere}'x/d/10.jpg' is there as '{data}/sub/d/10.jpg'"),
        ("x", "11.jpg", f"'{data}/11.jpg' for one; relative paths begin in the manifest's folder"),
        ("x", "C:\\12.jpg", "the paths hold backslashes, as on Windows, such as 'C:\\\\12.jpg'; write them with /"),
        ("x", "file:///13.jpg", f"'{data}/file:///13.jpg' for one; relative paths begin in the manifest's folder"),
        ("x", "14\0.jpg", f"'{data}/14\\x00.jpg' for one; relative paths begin in the manifest's folder"),
    ):
        put(top / there)
        assert why(data, written) == cause
    assert why(data, "no.jpg", "11.jpg", "8.jpg").endswith("'8.jpg' is there as '" + str(data / "sub/8.jpg'"))


def test_every_extension_is_tried(data):
    for ending in (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        for name in (ending, ending.upper()):
            path = put(data / f"a{name}")
            assert why(data, "a") == f"the paths lack their extension; '{path}' is there"
            path.unlink()


def test_a_file_that_cannot_be_looked_at_is_said(data, monkeypatch):
    real = os.stat

    def stat(path, *more, **options):
        if str(path).endswith("1.jpg"):
            raise OSError(number, os.strerror(number))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "stat", stat)
    for number, said_ in ((errno.EACCES, True), (errno.EIO, True), (errno.ENOENT, False), (errno.ENOTDIR, False),
                          (errno.ENAMETOOLONG, False)):  # fmt: skip
        told = f"'{data}/1.jpg' cannot be read ({os.strerror(number)})"
        assert (why(data, "1.jpg") == told) is said_


def test_some_folders_below_are_looked_into(data, monkeypatch):
    monkeypatch.setattr("pipelines.sources.missing_files.MAX_FOLDERS", 3)
    for number in range(3):
        put(data / f"{number}" / "a.jpg")
    assert "is there as" in why(data, "a.jpg")
    monkeypatch.setattr("pipelines.sources.missing_files.MAX_FOLDERS", 0)
    assert "for one" in why(data, "a.jpg")


def test_some_rows_are_looked_at(data):
    put(data / "sub" / "last.jpg")
    for count, found in ((19, True), (20, False)):
        text = "path\n" + "".join(f"{n}.jpg\n" for n in range(count)) + "last.jpg\nmore.jpg\n"
        source = list_source(put(data / "m.csv", text.encode()))
        list(source)
        assert (f"'last.jpg' is there as '{data}/sub/last.jpg'" in source.problems[0]) is found
        start = f"None of the {count + 2} files that {data}/m.csv names is there: "
        assert source.problems[0].startswith(start) and source.problems[0].endswith(".")


# --- samples of tars in words


def test_samples_without_labels_are_named(tmp_path):
    members = {f"{n}.jpg": "x" for n in range(3)} | {"8.jpg": "x", "8.cls": "a", "9.jpg": "x", "9.cls": "a"}
    source = list_source(shard(tmp_path / "s.tar", members))
    list(source)
    assert source.notes == ["3 of 5 images have no label in their tar, such as '0.jpg' and '1.jpg'."]
    members = {"1.cls": "a", "0.jpg": "x", "0.cls": "z", "1.jpg": "x", "2.cls": "b", "3.txt": "c", "4.json": "{}"}
    source = list_source(shard(tmp_path / "s.tar", members))
    assert labels(source) == {"0.jpg": "z", "1.jpg": "a"}
    assert source.notes == [
        "The labels of 1 samples were found elsewhere in their tar.",
        "2 samples in the tars have a .cls or .json file, and no image.",
    ]
    source = list_source(
        shard(tmp_path / "s.tar", {"1.cls": "a", "1.jpg": "x", "2.JSON": '{"label": 2}', "2.jpg": "x"})
    )
    assert labels(source) == {"1.jpg": "a", "2.jpg": "2"} and not source.notes


def test_side_files_apart_add_to_those_beside_the_picture(tmp_path):
    members = {"1.cls": "far", "2.jpg": "x", "1.json": '{"group": "g"}', "1.jpg": "x", "3.jpg": "x"}
    source = list_source(shard(tmp_path / "s.tar", members))
    assert [(member_of(entry.uri), entry.label, entry.group) for entry in source] == [
        ("2.jpg", None, None),
        ("1.jpg", "far", "g"),
        ("3.jpg", None, None),
    ]


@pytest.mark.parametrize(
    ("text", "values", "problem"),
    [
        ('{"label": "a", "split": "dev", "group": 7}', ("a", "val", "7"), ""),
        ('{"label": -3, "group": 2.0}', ("-3", None, "2"), ""),
        ("{}", (None, None, None), ""),
        ('{"label": true}', (None, None, None), "(Expected: a string or an integer. Got: True)"),
        ('{"label": 2.5}', (None, None, None), "(Expected: a string or an integer. Got: 2.5)"),
        ('{"label": ["a"]}', (None, None, None), "(Expected: a string or an integer. Got: ['a'])"),
        ('["a"]', (None, None, None), "('list' object has no attribute 'get')"),
        ("[" * 100_000, (None, None, None), "("),
    ],
    ids=itertools.count(),
)
def test_values_in_json(tmp_path, text, values, problem):
    source = list_source(shard(tmp_path / "s.tar", {"1.jpg": "x", "1.json": text}))
    assert [(entry.label, entry.split, entry.group) for entry in source] == [values]
    start = f"'{tmp_path}/s.tar': '1.json' is not a JSON object with label, split or group "
    assert bool(source.problems) == bool(problem)
    assert not problem or source.problems[0].startswith(start + problem)


def test_side_files_are_read_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sources.webdataset.MAX_SIDE_FILE_BYTES", 20)
    long = '{"label": "a"}' + " " * 20
    path = shard(tmp_path / "s.tar", {"1.jpg": "x", "1.cls": "c" * 30, "2.jpg": "x", "2.json": long})
    assert labels(list_source(path)) == {"1.jpg": "c" * 20, "2.jpg": "a"}


def test_problems_are_counted_from_the_last_that_is_told(monkeypatch):
    monkeypatch.setattr(listing, "MAX_PROBLEMS", 3)
    problems, lengths = listing.Problems(), []
    for number in range(5):
        problems.append(str(number))
        lengths.append(list(problems))
    assert lengths == [
        ["0"], ["0", "1"], ["0", "1", "2"], ["0", "1", "… and 2 more."], ["0", "1", "… and 3 more."],
    ]  # fmt: skip


def test_places_that_could_not_be_listed_are_remembered_up_to_a_number(monkeypatch):
    monkeypatch.setattr(listing, "MAX_INCOMPLETE", 2)
    source = listing.Listing("x", "folder")
    for number in range(3):
        source.could_not_list(f"file:///{number}/", f"problem {number}")
        assert source.incomplete == [["file:///0/"], ["file:///0/", "file:///1/"], ["file:///0/", ""]][number]
    assert source.problems == ["problem 0", "problem 1", "problem 2"]
