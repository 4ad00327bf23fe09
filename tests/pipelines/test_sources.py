import io
import itertools
import json
import os
import random
import re
import socket
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ImageError, SourceError
from pipelines.sources import corpus, tars, uris
from pipelines.sources.corpus import Entry, expand_braces, list_source, locate, member_of, path_of, read, uri_of
from pipelines.sources.listing import Hints


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(source) -> list[tuple[str, str | None]]:
    return [(Path(path_of(entry.uri)).name, entry.label) for entry in source]


def read_failure(uri: str, *place: int) -> str:
    with pytest.raises(ImageError) as caught:
        read(uri, *place)
    return caught.value.error_type


# --- URIs

PATHS = st.lists(
    st.binary(min_size=1, max_size=20).filter(lambda part: not {0, ord("/")} & set(part) and part not in (b".", b"..")),
    min_size=1,
    max_size=4,
).map(lambda parts: b"/" + b"/".join(parts))


@given(PATHS)
def test_paths_survive_as_uris(path):
    uri = uri_of(path)
    assert os.fsencode(path_of(uri)) == path
    assert uri.isascii() and uri.startswith("file:///") and not set(uri) & set(' "#?\n')
    assert member_of(uri) is None


@given(PATHS, st.binary(min_size=1).map(lambda name: name.decode("utf-8", "surrogateescape")))
def test_members_survive_as_uris(path, member):
    uri = uri_of(path, member)
    assert (os.fsencode(path_of(uri)), member_of(uri)) == (path, member)


def test_uris_of_relative_paths_and_of_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri_of("a b.jpg") == f"file://{tmp_path}/a%20b.jpg" == uri_of("x/../a b.jpg")
    assert uri_of(Path("ü.jpg")).endswith("/%C3%BC.jpg")
    assert path_of("file://localhost/a.jpg") == "/a.jpg"
    for wrong in ("s3://bucket/a.jpg", "file://host/a.jpg", "file:/a.jpg", "/a.jpg", ""):
        with pytest.raises(SourceError, match="Expected"):
            path_of(wrong)


# --- folder


def test_a_folder_per_class(tmp_path):
    for name in ("dog/2.png", "dog/1.JPG", "dog/deep/er/3.jpeg", "cat/1.jpg", "loose.webp", "cat/b.heic"):
        put(tmp_path / name, name.encode())
    for name in ("dog/notes.txt", "labels.csv", "README", ".hidden.jpg", "cat/Thumbs.db", ".git/x.jpg"):
        put(tmp_path / name)
    source = list_source(tmp_path)
    entries = list(source)
    assert source.kind == "folder"
    assert [(path_of(entry.uri).removeprefix(f"{tmp_path}/"), entry.label) for entry in entries] == [
        ("loose.webp", None),
        ("cat/1.jpg", "cat"),
        ("cat/b.heic", "cat"),
        ("dog/1.JPG", "dog"),
        ("dog/2.png", "dog"),
        ("dog/deep/er/3.jpeg", "dog"),
    ]
    assert entries == list(source)
    assert source.labelled == 5 and not source.problems
    assert source.ignored == {
        ".txt": 1,
        ".csv": 1,
        "no extension": 1,
        "hidden": 1,
        ".db": 1,
        "hidden folder": 1,
    }
    info = (tmp_path / "cat/1.jpg").stat()
    assert entries[1] == Entry(uri_of(tmp_path / "cat/1.jpg"), 9, info.st_mtime_ns, -1, "cat", None, None)


def test_a_folder_without_classes_is_unlabelled(tmp_path):
    put(tmp_path / "b.jpg")
    put(tmp_path / "a.jpg")
    source = list_source(f"{tmp_path}/")
    assert names(source) == [("a.jpg", None), ("b.jpg", None)] and source.labelled == 0


NASTY = [
    b"new\nline.jpg",
    b"-rf.jpg",
    b"\xff\xfe.jpg",
    b"a#b%20c?.jpg",
    b" .jpg",
    b"n" * 251 + b".jpg",
    "ü😀.jpg".encode(),
]


def test_nasty_names_are_listed_and_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/cl\xffass"
    Path(os.fsdecode(folder)).mkdir()
    for name in NASTY:
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(name)
    entries = list(list_source(tmp_path))
    assert {read(entry.uri)[0] for entry in entries} == set(NASTY) and len(entries) == len(NASTY)
    assert {entry.label for entry in entries} == {"cl\\xffass"}


def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "cat/1.jpg")
    (tmp_path / "cat/again.jpg").symlink_to(tmp_path / "cat/1.jpg")
    (tmp_path / "cat/gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "cat/self.jpg").symlink_to(tmp_path / "cat/self.jpg")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "dog").symlink_to(tmp_path / "cat")  # not a loop: listed under both names
    source = list_source(tmp_path)
    sizes = [(path_of(entry.uri).removeprefix(f"{tmp_path}/"), entry.size) for entry in source]
    assert sizes == [
        (f"{label}/{name}", size)
        for label in ("cat", "dog")
        for name, size in (("1.jpg", 1), ("again.jpg", 1), ("gone.jpg", -1), ("self.jpg", -1))
    ]
    assert len(source.problems) == 2 and all("links back" in problem for problem in source.problems)


def test_special_files_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        entries = list(list_source(tmp_path))
        assert [(entry.size, entry.mtime_ns) for entry in entries] == [(-1, 0), (-1, 0)]
        assert [read_failure(entry.uri) for entry in entries] == ["unreadable", "unreadable"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_a_problem(tmp_path):
    put(tmp_path / "cat/1.jpg")
    put(tmp_path / "dog/1.jpg").parent.chmod(0)
    source = list_source(tmp_path)
    assert names(source) == [("1.jpg", "cat")]
    assert "dog" in source.problems[0]
    (tmp_path / "dog").chmod(0o700)


def test_a_folder_that_cannot_be_scanned_is_a_problem(tmp_path, monkeypatch):
    put(tmp_path / "cat/1.jpg")
    put(tmp_path / "dog/1.jpg")
    real = os.scandir

    def scandir(path):
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = list_source(tmp_path)
    assert names(source) == [("1.jpg", "cat")]
    assert "dog" in source.problems[0] and "Permission denied" in source.problems[0]


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    put(tmp_path / "a.txt")
    put(tmp_path / "b.txt")
    with pytest.raises(SourceError, match=r"Expected: image files.*Got: only 2 × \.txt"):
        list(list_source(tmp_path))


def test_what_is_told_of_a_listing_stays_small_and_printable(tmp_path):
    put(tmp_path / "a.jpg")
    for number in range(300):
        put(tmp_path / f"scan.{number:04}")
        (tmp_path / f"loop{number}").symlink_to(tmp_path)
    put(tmp_path / "b.\udcff")
    source = list_source(tmp_path)
    list(source)
    assert len(source.ignored) == corpus.MAX_KINDS + 1 and sum(source.ignored.values()) == 301
    assert len(source.problems) == 300
    json.dumps([source.ignored, source.problems], ensure_ascii=False).encode()
    problems = corpus.Problems()
    for number in range(corpus.MAX_PROBLEMS + 20):
        problems.append(f"{number} " + "x" * 10**4)
    assert len(problems) == corpus.MAX_PROBLEMS and problems[-1] == "… and 21 more."
    assert max(map(len, problems)) == corpus.MAX_PROBLEM_LENGTH


def test_unknown_sources(tmp_path):
    for name, words in {
        "nothing": "There is no",
        "a.zip": "Expected: a folder",
        "missing.tar": "no shard",
        "missing.csv": "There is no",
        "missing-{0..3}.tar": "missing-0.tar",
    }.items():
        if not name.startswith(("missing", "nothing")):
            put(tmp_path / name)
        with pytest.raises(SourceError, match=words):
            list_source(tmp_path / name)


@pytest.mark.parametrize("hint", ["image_column", "label_column"])
def test_columns_that_are_named_where_there_are_none_are_told(tmp_path, hint):
    for name, data in {"f/a/1.png": b"x", "s.tar": b""}.items():
        put(tmp_path / name, data)
    with tarfile.open(tmp_path / "s.tar", "w") as made:
        made.add(tmp_path / "f/a/1.png", "1.png")
    put(tmp_path / "m.csv", b"photo,kind\nf/a/1.png,x\n")
    for name in ("f", "s.tar"):
        source = list_source(tmp_path / name, Hints(**{hint: "kind"}))
        assert len(list(source)) == 1
        assert f"{tmp_path / name} has no columns: --image-column and --label-column were not used." in source.notes
    source = list_source(tmp_path / "m.csv", Hints(image_column="photo", label_column="kind"))
    assert len(list(source)) == 1 and not any("has no columns" in note for note in source.notes)


# --- manifest


def manifest(tmp_path: Path, text: str, name: str = "m.csv") -> corpus.Source:
    return list_source(put(tmp_path / name, text.encode()))


def test_csv_manifest(tmp_path):
    put(tmp_path / "a.jpg", b"abc")
    put(tmp_path / "sub/b,c.jpg")
    outside = put(tmp_path.parent / f"{tmp_path.name}-outside.jpg")
    source = manifest(
        tmp_path,
        "\ufeffpath,label,split,group,extra\n"
        "a.jpg,007,Training,g1,1\n"
        '"sub/b,c.jpg",NA,VALID,,x\n'
        f"{outside},,testing,g2,1.5\n"
        "gone.jpg,1,,,\n"
        "./sub/../a.jpg,007,train,g1,again\n",
    )
    entries = list(source)
    assert source.kind == "manifest" and source.labelled == 3
    assert [(entry.label, entry.split, entry.group, entry.size) for entry in entries] == [
        ("007", "train", "g1", 3),
        ("NA", "val", None, 1),
        (None, "test", "g2", 1),
        ("1", None, None, -1),
    ]
    assert entries[0].uri == uri_of(tmp_path / "a.jpg") and entries[0].mtime_ns > 0
    assert entries[3].mtime_ns == 0 and read_failure(entries[3].uri) == "vanished"


def test_tsv_and_uris(tmp_path):
    put(tmp_path / "a b.jpg")
    tar = shard(tmp_path / "s.tar", {"1.jpg": b"tarred"})
    rows = [uri_of(tmp_path / "a b.jpg"), "a b.jpg", uri_of(tar, "1.jpg"), uri_of(tar, "2.jpg")]
    entries = list(manifest(tmp_path, "uri\tlabel\n" + "".join(f"{row}\tx\n" for row in rows), "m.tsv"))
    assert [entry.size for entry in entries] == [1, 6, -1]
    assert read(entries[1].uri, entries[1].offset, entries[1].size)[0] == b"tarred"


def test_parquet_manifest(tmp_path):
    put(tmp_path / "a.jpg")
    table = pa.table({"path": ["a.jpg", "b.jpg"], "label": pa.array([3, None], pa.int64()), "other": [[1], [2]]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert [(entry.label, entry.size) for entry in list_source(tmp_path / "m.parquet")] == [("3", 1), (None, -1)]


def test_a_late_value_does_not_change_a_columns_type(tmp_path):
    rows = "".join(f"{number:0200}.jpg,1,1\n" for number in range(6000))
    assert len(rows) > 2**20  # a block of a CSV
    text = f"path,label,n\n{rows}last.jpg,cat,word\n"
    *_, last = manifest(tmp_path, text)
    assert last.label == "cat"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na.jpg,x\n", "Expected: a column path or uri .*Got: 'name', 'label'"),
        ("path,split\na.jpg,train\nb.jpg,traning\n", "row 2: Expected: split.*Got: 'traning'"),
        (
            "path\nftp://host/a.jpg\n",
            "row 1: Expected: a path, or a URI that begins with file://, s3://, gs://, az://, https:// or http://. Got: ftp://host/a.jpg",
        ),
        ("path\nfile://host/a.jpg\n", "row 1: Expected"),
        ("path,label\n,x\n", "row 1: the path is empty"),
        ("path,label\na.jpg,x\na.jpg,y\n", "row 2: .*a.jpg has label 'y' here and 'x'"),
        ("path,group\na.jpg,x\na.jpg,\n", "row 2: .*a.jpg has group None here and 'x'"),
        ("path,label\na.jpg,x\nb.jpg\n", "line 3, row 2: Expected: 2 fields.*Got: 1"),
        ("", "cannot be read"),
        ("path,label,label\na.jpg,x,y\n", "column label twice"),
        ("path,label\n", "no images"),
    ],
)
def test_wrong_manifests_name_the_place(tmp_path, text, words):
    with pytest.raises(SourceError, match=words) as caught:
        list(manifest(tmp_path, text))
    assert "m.csv" in str(caught.value)


def test_manifests_that_are_not(tmp_path):
    put(tmp_path / "m.parquet", b"no parquet")
    put(tmp_path / "m.csv", b"path,label\na.jpg,\xff\xfe\n")
    put(tmp_path / "h.csv", b"path,\xff\na.jpg,x\n")
    pq.write_table(pa.table({"path": [["a.jpg"]]}), tmp_path / "list.parquet")
    for name in ("m.parquet", "m.csv", "h.csv", "list.parquet"):
        with pytest.raises(SourceError, match=name):
            list(list_source(tmp_path / name))


def test_odd_paths_in_a_manifest_fail_later(tmp_path):
    entries = list(manifest(tmp_path, f"path\nfile:///a%00b.jpg\n{'n' * 300}.jpg\n.\n"))
    assert [entry.size for entry in entries] == [-1, -1, -1]
    assert [read_failure(entry.uri) for entry in entries] == ["vanished", "unreadable", "unreadable"]


# --- tar


def shard(path: Path, members: dict[str, bytes | str], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_shards_with_labels(tmp_path, format):
    long = "d" * 150 + "/3.png"
    shard(
        tmp_path / "a-00.tar",
        {
            "x/1.jpg": b"one",
            "x/1.cls": "cat\n",
            "x/1.txt": "a caption",
            "x/2.json": json.dumps({"label": 7, "split": "valid", "group": "g"}),
            "x/2.jpg": b"two",
            long: b"three",
            "../evil.jpg": b"four",
            "dir.v1/5.seg.png": b"five",
        },
        format,
    )
    shard(tmp_path / "a-01.tar", {"\udcff.jpg": b"six", "\udcff.json": '{"label": "a"}', "\udcff.cls": "b"}, format)
    source = list_source(f"{tmp_path}/a-{{00..01}}.tar")
    entries = list(source)
    assert source.kind == "tar" and not source.problems and source.ignored == {".txt": 1}
    assert [(member_of(entry.uri), entry.label, entry.split, entry.group) for entry in entries] == [
        ("x/1.jpg", "cat", None, None),
        ("x/2.jpg", "7", "val", "g"),
        (long, None, None, None),
        ("../evil.jpg", None, None, None),
        ("dir.v1/5.seg.png", None, None, None),
        ("\udcff.jpg", "b", None, None),
    ]
    expected = [b"one", b"two", b"three", b"four", b"five", b"six"]
    mtimes = [(tmp_path / "a-00.tar").stat().st_mtime_ns] * 5 + [(tmp_path / "a-01.tar").stat().st_mtime_ns]
    assert [read(entry.uri, entry.offset, entry.size) for entry in entries] == [
        (data, len(data), mtime) for data, mtime in zip(expected, mtimes, strict=True)
    ]
    assert [read(entry.uri)[0] for entry in entries] == expected
    assert [(entry.offset, entry.size, entry.mtime_ns) for entry in entries] == [
        (found.offset, found.size, found.mtime_ns) for found in (locate(entry.uri) for entry in entries)
    ]


def test_locate_scans_a_tar_once_until_it_changes(tmp_path, monkeypatch):
    path = shard(tmp_path / "s.tar", {f"{i}.jpg": b"x" * i for i in range(20)})
    scans = []
    real = tars.members
    monkeypatch.setattr(tars, "members", lambda blob: scans.append(1) or real(blob))
    assert [locate(uri_of(path, f"{i}.jpg")).size for i in range(20)] == list(range(20))
    assert scans == [1]
    monkeypatch.undo()
    shard(path, {"0.jpg": b"new and longer" * 2000})
    assert read(uri_of(path, "0.jpg"))[0] == b"new and longer" * 2000
    assert locate(uri_of(path, "1.jpg")).size == -1
    assert read_failure(uri_of(path, "1.jpg")) == "vanished"
    path.unlink()
    assert read_failure(uri_of(path, "0.jpg")) == "vanished"


def test_a_truncated_shard_keeps_what_is_listed(tmp_path):
    path = shard(tmp_path / "s.tar", {f"{i}.jpg": bytes([i]) * 2000 for i in range(10)})
    data = path.read_bytes()
    for end, count in ((3 * 2560 + 1000, 4), (3 * 2560 + 100, 3), (3 * 2560, 3)):
        path.write_bytes(data[:end])
        source = list_source(path)
        entries = list(source)
        assert len(entries) == count and len(source.problems) == 1 and "s.tar" in source.problems[0]
        assert read(entries[2].uri, entries[2].offset, entries[2].size)[0] == b"\2" * 2000
    path.write_bytes(data[: 3 * 2560 + 1000])
    assert read_failure(entries[2].uri.replace("2.jpg", "3.jpg")) == "truncated"


def test_a_damaged_header_is_a_problem(tmp_path):
    path = shard(tmp_path / "s.tar", {f"{i}.jpg": b"x" * 512 for i in range(10)})
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 300] = b"\x77" * 300
    path.write_bytes(data)
    source = list_source(path)
    assert len(list(source)) == 4 and "byte 4096" in source.problems[0]


def test_odd_shards(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("1.jpg", b"a"), ("1.json", b"{no json"), ("1.jpg", b"b"), (".2.jpg", b"c")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = list_source(path)
    (entry,) = source
    assert read(entry.uri)[0] == b"a" and entry.label is None
    assert source.ignored == {"hidden": 1, "link or special member": 1}
    assert ["JSON" in problem for problem in source.problems] == [True, False]
    assert "twice" in source.problems[1]
    with pytest.raises(SourceError, match=r"s2.tar, '1.json': Expected: split"):
        list(list_source(shard(tmp_path / "s2.tar", {"1.json": '{"split": "x"}', "1.jpg": b""})))
    with pytest.raises(SourceError, match="no images"):
        list(list_source(put(tmp_path / "empty.tar", b"")))
    with pytest.raises(SourceError, match=r"no shard .*s3\.tar"):
        list(list_source(f"{tmp_path}/{{s,s3}}.tar"))


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header whose size field is what it is."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def base_256(size: int) -> bytes:
    return (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11)


def body(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


FIRST = header("1.jpg", octal(3)) + body(b"one")


@pytest.mark.parametrize(
    "rest",
    [
        header("2.jpg", base_256(-512)),
        header("2.jpg", base_256(-1024)) * 2,
        header("2.jpg", base_256(2**70)),
        header("2.jpg", b"9" * 12),
        header("2.jpg", b"-0000000512\0"),
        header("x", base_256(2**40), b"x"),
        header("x", base_256(2**40), b"L"),
        header("x", octal(600_000), b"x") + body(b"1" * 600_000),
        header("x", octal(6), b"x") + body(b"0 a=b\n"),
        header("x", octal(2), b"x") + body(b"2 "),
        header("x", octal(17), b"x") + body(b"17 size=-0000512\n") + FIRST,
        header("x", octal(15), b"x") + body(b"15 size=1_000_\n") + FIRST,
        (header("x", octal(5), b"L") + body(b"a.jpg")) * 3000,
        header("x", octal(0), b"S")[:482] + b"\1" + header("x", octal(0), b"S")[483:] + b"\1" * 512,
    ],
    ids="negative loop huge nines minus pax-huge name-huge digits zero-record no-record pax-negative pax-odd chain "  # noqa: SIM905
    "sparse".split(),
)
def test_hostile_headers_end_the_archive(tmp_path, rest):
    """Python's own tarfile never ends, takes minutes, or raises MemoryError or RecursionError on some of these."""
    source = list_source(put(tmp_path / "s.tar", FIRST + rest + bytes(1024)))
    assert [read(entry.uri)[0] for entry in source] == [b"one"]
    assert len(source.problems) == 1 and "byte" in source.problems[0]


@pytest.mark.parametrize(
    ("format", "lengths", "alphabet"),
    [
        (tarfile.USTAR_FORMAT, (1, 50, 90), "ab/ü\n\udcff"),
        (tarfile.PAX_FORMAT, (1, 50, 99, 100, 101, 155, 300, 5000), "ab/ü\n"),  # tarfile stops at its own "\n\udcff"
        (tarfile.GNU_FORMAT, (1, 50, 99, 100, 101, 155, 300, 5000), "ab/ü\n\udcff"),
    ],
)
def test_members_are_those_of_tarfile(tmp_path, format, lengths, alphabet):
    """Names of every length and alphabet, sizes around the block's, all kinds, in all formats."""
    draw = random.Random(0)
    kinds = (tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
    with tarfile.open(tmp_path / "s.tar", "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for number in range(120):
            name = "".join(draw.choice(alphabet) for _ in range(draw.choice(lengths))).strip("/")
            member = tarfile.TarInfo(re.sub("/+", "/", f"{name}/{number}").strip("/")[-max(lengths) :])
            member.type, member.linkname = draw.choice(kinds), "target" * draw.choice((1, len(lengths)))
            member.size = draw.choice((0, 1, 511, 512, 513, 5000)) if member.isreg() else 0
            member.mtime = draw.random() * 1e9
            tar.addfile(member, io.BytesIO(draw.randbytes(member.size)))
    with tarfile.open(tmp_path / "s.tar", encoding="utf-8", errors="surrogateescape") as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    with uris.open_blob(uri_of(tmp_path / "s.tar")) as blob:
        found = [(m.name, m.offset, m.size) for m in tars.members(blob) if m.kind == "file"]
    assert found == expected and len(found) > 40


def test_members_of_a_tar_older_than_ustar(tmp_path):
    old = [bytearray(header(name, octal(3), b"\0")) for name in ("1.jpg", "folder.jpg/", "2.jpg")]
    for block in old:
        block[257:] = bytes(255)
        block[148:156] = b" " * 8
        block[148:156] = b"%6o\0 " % sum(block)
    data = b"".join(bytes(block) + body(b"abc") for block in old)
    source = list_source(put(tmp_path / "s.tar", data + bytes(1024)))
    assert [member_of(entry.uri) for entry in source] == ["1.jpg", "2.jpg"] and not source.problems


def test_sparse_members_of_gnu_tar_are_left_out(tmp_path):
    (tmp_path / "hole.jpg").write_bytes(b"")
    os.truncate(tmp_path / "hole.jpg", 2**20)
    put(tmp_path / "z.jpg", b"after")
    for format in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={format}", "-cf", "s.tar", "hole.jpg", "z.jpg"]
        try:
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("GNU tar is not installed")
        source = list_source(tmp_path / "s.tar")
        assert [read(entry.uri)[0] for entry in source] == [b"after"]
        assert source.ignored == {"link or special member": 1} and not source.problems


def test_labels_in_a_tar_are_utf_8_whatever_they_say(tmp_path):
    path = shard(tmp_path / "s.tar", {"1.jpg": b"x", "1.json": '{"label": "\\ud800", "group": "g"}'})
    (entry,) = list_source(path)
    assert entry.label == "\\ud800" and entry.label.encode()


# --- braces


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{,y}", ["x", "xy"]),
        ("{a}{", ["{a}{"]),
        ("{}", ["{}"]),
    ],
)
def test_braces_expand_as_in_bash(pattern, expanded):
    assert list(expand_braces(pattern)) == expanded


@given(st.text("abc-./", max_size=5), st.integers(0, 10**6), st.integers(0, 50), st.integers(1, 9), st.text("xyz."))
def test_ranges_expand_in_order(prefix, first, count, width, suffix):
    numbers = [f"{n:0{width}}" for n in range(first, first + count + 1)]
    padded = len(numbers[0]) == len(numbers[-1])
    if padded or width == 1:
        assert list(expand_braces(f"{prefix}{{{numbers[0]}..{numbers[-1]}}}{suffix}")) == [
            prefix + number + suffix for number in numbers
        ]


@given(st.lists(st.lists(st.text("abc01", max_size=3), min_size=2, max_size=3), min_size=1, max_size=3))
def test_alternatives_multiply(groups):
    pattern = "-".join("{" + ",".join(group) + "}" for group in groups)
    assert list(expand_braces(pattern)) == ["-".join(choice) for choice in itertools.product(*groups)]


def test_huge_ranges_are_lazy():
    assert list(itertools.islice(expand_braces("{0..999999999999}{a,b}"), 3)) == ["0a", "0b", "1a"]


# --- reading


def test_read_describes_the_bytes_it_returns(tmp_path):
    path = put(tmp_path / "a.jpg", b"abc" * 1000)
    os.utime(path, ns=(5, 123_456_789))
    assert read(uri_of(path)) == (b"abc" * 1000, 3000, 123_456_789)
    assert read(uri_of(put(tmp_path / "empty.jpg", b"")))[:2] == (b"", 0)


def test_reading_fails_with_a_word(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jpg", b"x" * 100)
    assert read_failure(uri_of(tmp_path / "none.jpg")) == "vanished"
    assert read_failure(uri_of(path / "below.jpg")) == "vanished"
    assert read_failure(uri_of(tmp_path)) == "unreadable"
    assert read_failure("file:///dev/zero") == "unreadable"
    monkeypatch.setattr(uris, "MAX_FILE_BYTES", 99)
    assert read_failure(uri_of(path)) == "too_large"
    assert read_failure(uri_of(path, "m"), 0, 100) == "too_large"


def test_a_file_larger_than_memory_is_too_large(tmp_path, monkeypatch):
    def pread(*args):
        raise MemoryError

    path = put(tmp_path / "a.jpg")
    monkeypatch.setattr(os, "pread", pread)
    assert read_failure(uri_of(path)) == "too_large"


def test_a_failure_can_always_be_written_down(tmp_path):
    path = shard(tmp_path / "\udcff.tar", {"1.jpg": b"x"})
    for uri in (uri_of(path, "2.jpg"), uri_of(tmp_path / "\udcff.jpg")):
        with pytest.raises(ImageError) as caught:
            read(uri)
        assert str(caught.value).encode()


def test_a_sparse_giant_is_not_read(tmp_path):
    path = put(tmp_path / "giant.jpg")
    os.truncate(path, 2**40)
    assert read_failure(uri_of(path)) == "too_large"


def test_a_file_that_changes_while_read_is_unreadable(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jpg", b"x" * 100)
    real = os.pread

    def pread(descriptor, size, start):
        os.truncate(path, 50)
        return real(descriptor, size, start)

    monkeypatch.setattr(os, "pread", pread)
    assert read_failure(uri_of(path)) == "unreadable"


def test_a_file_that_is_read_in_pieces_is_whole(tmp_path, monkeypatch):
    """As over a network: each call gives a few bytes."""
    data = bytes(range(256)) * 3
    path, tar = put(tmp_path / "a.jpg", data), shard(tmp_path / "s.tar", {"0.jpg": b"x" * 700, "1.jpg": data})
    real = os.pread
    (zero, one) = list_source(tar)
    monkeypatch.setattr(os, "pread", lambda descriptor, size, start: real(descriptor, min(size, 100), start))
    assert read(uri_of(path))[:2] == (data, 768)
    assert read(one.uri, one.offset, one.size)[:2] == (data, 768)
    assert read(zero.uri, zero.offset, 3)[:2] == (b"xxx", 3)


def test_a_member_at_the_first_byte_is_no_whole_file(tmp_path):
    path = put(tmp_path / "a.tar", b"abcdef")
    assert read(uri_of(path, "m"), 0, 3) == (b"abc", 3, path.stat().st_mtime_ns)
    assert read_failure(uri_of(path, "m"), 0, 7) == "truncated"
    assert (locate(uri_of(path, "m")).size, locate(uri_of(path, "m")).offset) == (-1, -1)
    assert locate(uri_of(tmp_path / "none.tar", "m")) == Entry(uri_of(tmp_path / "none.tar", "m"), -1, 0)


def test_what_changes_between_two_looks_at_it_is_not_read(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jpg", b"x" * 100)
    pread, open_ = os.pread, os.open

    def touching(descriptor, size, start):
        os.utime(path, ns=(5, 5))
        return pread(descriptor, size, start)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", touching)
        with pytest.raises(ImageError, match="changed while it was read: run again") as caught:
            read(uri_of(path))
        assert caught.value.error_type == "unreadable"

    def swapping(name, *more):
        path.unlink()
        os.mkfifo(path)
        return open_(name, *more)

    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(ImageError, match="is not a regular file") as caught:
        read(uri_of(path))
    assert caught.value.error_type == "unreadable"


def test_no_file_stays_open(tmp_path, monkeypatch):
    path, tar = put(tmp_path / "a.jpg"), shard(tmp_path / "s.tar", {"1.jpg": b"x"})
    monkeypatch.setattr(uris, "MAX_FILE_BYTES", 1)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        read(uri_of(path))
        read(uri_of(tar, "1.jpg"))
        assert read_failure(uri_of(tar)) == "too_large"
        assert len(list(list_source(tar))) == 1
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_files_of_just_the_limit_are_read(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jpg", b"x" * 100)
    monkeypatch.setattr(uris, "MAX_FILE_BYTES", 100)
    assert read(uri_of(path))[1] == 100
    monkeypatch.setattr(uris, "MAX_FILE_BYTES", 99)
    with pytest.raises(ImageError, match=r"^100 bytes are more than the limit of 99\.$"):
        read(uri_of(path))


def test_an_empty_file_is_a_file_that_is_there(tmp_path):
    put(tmp_path / "a.jpg", b"")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    source = list_source(tmp_path)
    assert [entry.size for entry in source] == [0, -1] and source.missing == 1


def test_what_was_found_instead_of_pictures_is_said(tmp_path):
    for number, kind in enumerate(("txt", "md", "csv", "db", "ini", "log", "xml")):
        for copy in range(9 - number):
            put(tmp_path / f"{copy}.{kind}")
    ignored = "9 × .txt, 8 × .md, 7 × .csv, 6 × .db, 5 × .ini"
    looked_for = "image files (.jpg, .png, .webp, .gif, .bmp, .tif …), in sub-folders named after their class"
    with pytest.raises(SourceError) as caught:
        list(list_source(tmp_path))
    assert str(caught.value) == f"{tmp_path} has no images. Expected: {looked_for}. Got: only {ignored}."
    for number in range(4):
        (tmp_path / f"loop{number}").symlink_to(tmp_path)
    with pytest.raises(SourceError) as caught:
        list(list_source(tmp_path))
    loops = "; ".join(f"'{tmp_path}/loop{n}' links back to a folder above it and was not followed." for n in range(3))
    assert str(caught.value).endswith(f" Got: {loops}; only {ignored}.")
    for name, expected in (("m.csv", "at least one row"), ("s.tar", "members such as 0001.jpg with 0001.cls")):
        path = put(tmp_path / "x" / name, b"path\n" if name == "m.csv" else bytes(1024))
        with pytest.raises(SourceError) as caught:
            list(list_source(path))
        assert str(caught.value) == f"{path} has no images. Expected: {expected}. Got: nothing."


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no.tar.gz", "There is no shard {}: check the path and the braces."),
        ("a.zip", "Expected: a folder, or a .csv, .tsv, .parquet, .tar, .arrow, .feather or .lance file. Got: {}."),
        ("a.gz", "Expected: a folder, or a .csv, .tsv, .parquet, .tar, .arrow, .feather or .lance file. Got: {}."),
        ("no.csv", "There is no {}: name a folder, a manifest or a tar."),
        ("no.tar", "There is no shard {}: check the path and the braces."),
        ("a.tar/no.csv", "There is no {}: name a folder, a manifest or a tar."),
        ("a\0b", "There is no {}: name a folder, a manifest or a tar."),
        ("a.jpg", "{} is a single image: name the folder that holds it, <folder>."),
    ],
)
def test_a_source_of_no_known_kind(tmp_path, name, sentence):
    put(tmp_path / "a.tar")
    if not name.startswith("no") and "/" not in name and "\0" not in name:
        put(tmp_path / name)
    with pytest.raises(SourceError) as caught:
        list_source(tmp_path / name)
    assert str(caught.value) == sentence.format(tmp_path / name).replace("<folder>", str(tmp_path))


def test_a_single_picture_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path / "a.jpg").parent)
    with pytest.raises(SourceError, match=r"^a\.jpg is a single image: name the folder that holds it, \.\.$"):
        list_source("a.jpg")


def test_a_pattern_of_tars_needs_no_file_of_its_name(tmp_path):
    path = shard(tmp_path / "S{0,1}.TAR", {"1.jpg": b"x"})  # what is there under that very name is no pattern
    source = list_source(path)
    assert source.kind == "tar" and len(list(source)) == 1
    assert source.uri == f"file://{tmp_path}/S{{0,1}}.TAR"
    (tmp_path / "folder.tar").mkdir()
    put(tmp_path / "folder.tar" / "1.jpg")
    assert list_source(tmp_path / "folder.tar").kind == "folder"
    assert list_source(put(tmp_path / "M.CSV", b"path\n1.jpg\n")).kind == "manifest"
