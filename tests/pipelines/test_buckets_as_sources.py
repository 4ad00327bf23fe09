"""Images in buckets and behind web addresses: listed, read and embedded as those of a disk are, over real servers."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from PIL import Image
from pyarrow import csv, parquet

from conftest import ROOT, CountingEngine
from featurestore.errors import BucketError, ImageError, NoPictures, SourceError
from featurestore.storage import buckets
from object_proxy import Proxy, proxy
from object_servers import ObjectServer, free_ports
from pipelines import predict as predicting
from pipelines.concurrency import read_ahead
from pipelines.embedding import files
from pipelines.sources import metadata, objects, places, prefixes, rows, tar_listings, tars, uris, webdataset
from pipelines.sources.base import Entry
from pipelines.sources.corpus import Source, list_source
from pipelines.sources.listing import Hints


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


Put = Callable[..., None]


@pytest.fixture
def put(seaweedfs: ObjectServer, bucket: str) -> Put:
    """Write objects of the bucket, by key."""
    store = seaweedfs.store(bucket)

    def write(objects_by_key: dict[str, bytes]) -> None:
        for key, data in objects_by_key.items():
            obstore.put(store, key, data)

    return write


@pytest.fixture
def asked(seaweedfs: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What is asked of the server from here on."""
    with proxy(seaweedfs.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


def listed(source: Source) -> list[tuple[str, str | None, str | None, str | None]]:
    """What a listing says, without the place where it lies."""
    start = len(source.uri) + 1
    return sorted((entry.uri[start:], entry.label, entry.split, entry.group) for entry in source)


# --- URIs


@pytest.mark.parametrize(
    ("typed", "uri"),
    [
        ("s3://b/a b.jpg", "s3://b/a%20b.jpg"),
        ("s3://b/50%25 ü?.jpg", "s3://b/50%25%20%C3%BC%3F.jpg"),
        ("s3://b/%61.jpg", "s3://b/a.jpg"),
        ("gs://b/x.tar#%61/1.jpg", "gs://b/x.tar#a/1.jpg"),
        ("az://b/x.tar#1 2.jpg", "az://b/x.tar#1%202.jpg"),
        ("https://HOST:80/A%20b.jpg", "https://host:80/A%20b.jpg"),
    ],
)
def test_one_spelling(typed: str, uri: str) -> None:
    assert places.canonical(typed) == uri == places.canonical(uri)


@pytest.mark.parametrize(
    "wrong", ["s3://b", "s3://b/", "s3:///a", "s3://b/a//b", "s3://b/../a", "s3://b/a/./b", "s3://b/%0a", "s3://b/%ff"]
)
def test_no_image(wrong: str) -> None:
    with pytest.raises(SourceError, match=r"Expected: a (URI|key)"):
        places.canonical(wrong)


def test_sources_have_one_spelling_too() -> None:
    for typed, uri in (
        ("s3://b", "s3://b"), ("s3://b/", "s3://b"), ("s3://b/p/", "s3://b/p"), ("s3://b/p q", "s3://b/p%20q"),
        ("s3://b/{0..3}.tar", "s3://b/{0..3}.tar"), ("s3://b/{a,b}.csv", "s3://b/%7Ba%2Cb%7D.csv"),
    ):  # fmt: skip
        assert places.source_uri(typed) == uri
    with pytest.raises(SourceError, match="without a question mark"):
        places.canonical("https://host/a.jpg?x=1")


# --- listing


FOLDERS = {
    "classes": ["cat/1.jpg", "cat/deep/er/2.jpg", "dog/3.JPG", "dog/notes.txt", "top.png", "dog/.hidden.jpg"],
    "splits": ["train/cat/1.jpg", "train/dog/2.jpg", "Validation/cat/3.jpg", "test/4.jpg"],
    "no splits": ["train/1.jpg", "val/2.jpg"],
    "others beside splits": ["train/cat/1.jpg", "test/cat/1.jpg", "more/cat/1.jpg"],
    "wrapper": ["outer/inner/cat/1.jpg", "outer/inner/dog/2.jpg", "outer/.git/x.jpg"],
    "flat": ["1.jpg", "2.jpg", "3.gif", "readme"],
    "system": [
        "a/1.jpg",
        "a/@eaDir/1.jpg",
        "a/@eaDir/2/3.jpg",
        "__MACOSX/a/1.jpg",
        ".git/1.jpg",
        ".git/2.jpg",
        "b/2.jpg",
    ],
    "speech": ["on/a_nohash_0.png", "on/a_nohash_1.png", "off/a_nohash_0.png", "off/b.png"],
    "names": ["ä ö/50%.jpg", "a#b/1+2.jpg", "'\"/~*.jpg"],
}


@pytest.mark.parametrize("keys", FOLDERS.values(), ids=FOLDERS)
def test_a_prefix_is_listed_as_a_folder_is(tmp_path: Path, put: Put, bucket: str, keys: list[str]) -> None:
    for key in keys:
        path = tmp_path / "photos" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
    put({f"photos/{key}": key.encode() for key in keys} | {"photos too/1.jpg": b"not below the prefix"})
    for folders in (True, False):
        local = list_source(tmp_path / "photos", Hints(folders))
        far = list_source(f"s3://{bucket}/photos/", Hints(folders))
        assert listed(far) == listed(local) and listed(far) == listed(far)
        assert (far.ignored, far.problems, far.incomplete) == (local.ignored, [], [])
        assert [note.replace(far.uri, str(tmp_path / "photos")) for note in far.notes] == local.notes
    for entry in far:
        assert places.locate(entry.uri) == Entry(entry.uri, entry.size, entry.mtime_ns)
        assert places.read(entry.uri, entry.offset, entry.size)[1:] == (entry.size, entry.mtime_ns)


def test_what_consoles_leave_for_folders_does_not_count(put: Put, bucket: str) -> None:
    put({"p/cat/1.jpg": b"x", "p/cat/": b"", "p/dog/": b"", "p/empty.jpg": b""})
    source = list_source(f"s3://{bucket}/p")
    assert {entry.uri.rpartition("/")[2]: (entry.size, entry.label) for entry in source} == {
        "1.jpg": (1, "cat"), "empty.jpg": (0, None),
    }  # fmt: skip
    assert not source.ignored
    assert places.read(f"s3://{bucket}/p/empty.jpg", -1, 0)[0] == b""


def test_more_keys_than_a_first_look_shows(put: Put, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and folders that come late among the keys count as others do."""
    monkeypatch.setattr(prefixes, "GLANCE", 3)
    put({f"p/w/a/{n}.jpg": b"x" for n in range(5)} | {"p/z.jpg": b"x"})
    assert {entry.label for entry in list_source(f"s3://{bucket}/p")} == {"w", None}
    put({f"q/w/a/{n}.jpg": b"x" for n in range(5)} | {"q/w/z.jpg": b"x"})
    assert {entry.label for entry in list_source(f"s3://{bucket}/q")} == {"w"}
    put({f"r/train/.x/{n}.jpg": b"x" for n in range(5)} | {"r/train/c/1.jpg": b"x", "r/test/1.jpg": b"x"})
    assert {(entry.label, entry.split) for entry in list_source(f"s3://{bucket}/r")} == {("c", "train"), (None, "test")}


def test_keys_are_asked_for_while_others_are_worked_on() -> None:
    asked: list[int] = []
    at_third = threading.Event()

    def keys() -> Iterator[int]:
        for number in range(9):
            asked.append(number)
            if number == 5:
                at_third.set()
            yield number

    ahead = read_ahead(keys(), 3)
    assert next(ahead) == 0 and at_third.wait(10) and asked == [0, 1, 2, 3, 4, 5]
    assert list(ahead) == list(range(1, 9)) and list(read_ahead(iter([]), 3)) == []

    def broken() -> Iterator[int]:
        yield 1
        raise BucketError("away")

    before, ahead = threading.active_count(), read_ahead(broken(), 1)
    assert next(ahead) == 1
    with pytest.raises(BucketError, match="away"):
        next(ahead)
    ahead = read_ahead(keys(), 3)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before


# --- embedding


def test_a_prefix_is_embedded_once(run: Any, put: Put, bucket: str, engine: CountingEngine, asked: Proxy) -> None:
    put({f"photos/{'abc'[n % 3]}/{n}.png": png(n) for n in range(30)})
    first = run("embed", f"s3://{bucket}/photos")
    assert (first["source"], first["embedded"], first["failed"]) == (f"s3://{bucket}/photos", 30, 0)
    assert first["labels"]["classes"] == {"a": 10, "b": 10, "c": 10}
    assert engine.images == asked.count("GET", ".png") == 30 and asked.count("HEAD") == len(metadata.NAMES)
    again = run("embed", f"s3://{bucket}/photos/")
    assert (again["unchanged"], again["embedded"]) == (30, 0)
    assert engine.images == asked.count("GET", ".png") == 30 and asked.count("HEAD") == 2 * len(metadata.NAMES)
    put({"photos/a/0.png": png(0), "photos/b/1.png": png(99), "photos/c/new.png": png(3)})
    changed = run("embed", f"s3://{bucket}/photos")
    assert (changed["changed"], changed["new"], changed["embedded"]) == (1, 1, 1) and engine.images == 31
    assert asked.count("GET", ".png") == 32
    assert run("verify") == []


def test_an_equal_object_under_another_tag_is_read_and_not_embedded(
    run: Any, put: Put, bucket: str, engine: CountingEngine, seaweedfs: ObjectServer, asked: Proxy
) -> None:
    put({f"p/{n}.png": png(n) for n in range(3)})
    run("embed", f"s3://{bucket}/p")
    obstore.put(seaweedfs.store(bucket), "p/0.png", png(0), use_multipart=True, chunk_size=5 * 2**20)
    again = run("embed", f"s3://{bucket}/p")
    assert (again["changed"], again["unchanged"], again["embedded"]) == (1, 2, 0) and engine.images == 3
    assert asked.count("GET", ".png") == 4
    assert run("embed", f"s3://{bucket}/p")["unchanged"] == 3


def test_what_cannot_be_read_is_a_row(run: Any, put: Put, bucket: str, asked: Proxy) -> None:
    put({f"p/{n}.png": png(n) for n in range(10)})
    asked.answers |= {("GET", "/1.png"): 404, ("GET", "/2.png"): 403}
    done = run("embed", f"s3://{bucket}/p", "--max-failure-rate", "1")
    assert (done["embedded"], done["failures"]) == (8, {"vanished": 1, "unreadable": 1})
    asked.answers.clear()
    assert run("embed", f"s3://{bucket}/p", "--retry-failed")["embedded"] == 2


def test_an_object_that_its_server_cannot_read_does_not_end_the_run(
    run: Any, put: Put, bucket: str, asked: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MAX_TRIES", 2)
    put({f"p/{n}.png": png(n) for n in range(10)})
    asked.answers |= {("GET", "/3.png"): 500}
    done = run("embed", f"s3://{bucket}/p", "--max-failure-rate", "1")
    assert (done["embedded"], done["failures"]) == (9, {"unreadable": 1})
    assert asked.count("GET", "/3.png") == 2


def test_a_bucket_that_goes_away_ends_the_run_and_what_is_done_is_kept(
    run: Any, put: Put, bucket: str, engine: CountingEngine, asked: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MAX_TRIES", 2)
    put({f"p/{n:02}.png": png(n) for n in range(64)})
    asked.answers |= {(method, f"/{n}.png"): 503 for method in ("GET", "HEAD") for n in range(40, 64)}
    with pytest.raises(BucketError, match=r"asks to slow down, .* run the same command again") as caught:
        run("embed", f"s3://{bucket}/p", "--shard-images", "16")
    assert caught.value.exit_code == 1
    asked.answers.clear()
    again = run("embed", f"s3://{bucket}/p")
    assert (again["unchanged"], again["embedded"]) == (32, 32) and asked.count("GET", "/00.png") == 1


@pytest.mark.parametrize("at_once", [1, 2, 7, 64])
def test_files_are_read_ahead_in_order_and_in_bounds(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, running, most, done = threading.Lock(), 0, 0, []

    def read(uri: str, offset: int, size: int) -> tuple[bytes, int, int]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
            done.append(uri)
        return uri.encode(), size, offset

    monkeypatch.setattr(files.corpus, "read", read)
    monkeypatch.setattr(files.places, "in_flight", lambda uri: at_once if "far" in uri else 1)
    planned = [files.File(f"{'near' if n % 5 == 0 else 'far'}{n}", 1, n, n) for n in range(200)]
    taken = files.reading_ahead(iter(planned))
    for file, expected in zip(taken, planned, strict=True):
        assert file is expected and (file.reading is None) == ("near" in file.uri or at_once == 1)
        assert file.reading is None or file.reading.result() == (file.uri.encode(), 1, file.offset)
    assert most <= at_once and (most > 1) == (at_once > 1)

    monkeypatch.setattr(files, "MAX_BYTES_AHEAD", 10)
    most, done = 0, []
    taken = files.reading_ahead(files.File(f"far{n}", 4, n, n) for n in range(50))
    for file in taken:
        if file.reading:
            file.reading.result()
    assert most <= 3
    monkeypatch.setattr(files, "MAX_READS", 2)
    taken, done = files.reading_ahead(files.File(f"far{n}", 1, n, n) for n in range(99)), []
    next(taken)
    taken.close()
    assert running == 0 and len(done) < 10
    monkeypatch.setattr(files, "MAX_READS", 1)  # what was taken is read, though the end was reached before
    taken = list(files.reading_ahead(files.File(f"far{n}", 1, n, n) for n in range(20)))
    assert all(file.reading.result()[0] == file.uri.encode() for file in taken if file.reading) and len(taken) == 20


def test_images_are_predicted_at_once(
    run: Any, put: Put, bucket: str, asked: Proxy, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "open_engine", lambda *_args, **_options: engine)
    put({f"p/{'ab'[n % 2]}/{n}.png": png(n) for n in range(40)})
    run("embed", f"s3://{bucket}/p")
    run("train", "--head", "ncm")
    put({f"new/{n}.png": png(100 + n) for n in range(32)})
    asked.delay, since = 0.1, time.monotonic()
    told = run("predict", *(f"s3://{bucket}/new/{n}.png" for n in range(32)))
    assert time.monotonic() - since < 32 * 0.1
    assert all(one["label"] in ("a", "b") for one in told)
    assert sum("/new/" in path for method, path in asked.requests if method == "GET") == 2 * 32


# --- manifests


def test_a_manifest_mixes_places(tmp_path: Path, run: Any, put: Put, bucket: str, engine: CountingEngine) -> None:
    (tmp_path / "local.png").write_bytes(png(1))
    put({"p/far one.png": png(2), "p/same.png": png(1)})
    rows = ["local.png,a", f"s3://{bucket}/p/far one.png,b", f"s3://{bucket}/p/same.png,a", f"s3://{bucket}/none.png,c"]
    (tmp_path / "m.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    source = list_source(tmp_path / "m.csv")
    assert [(entry.uri, entry.label) for entry in source] == [
        ((tmp_path / "local.png").as_uri(), "a"),
        (f"s3://{bucket}/p/far%20one.png", "b"),
        (f"s3://{bucket}/p/same.png", "a"),
        (f"s3://{bucket}/none.png", "c"),
    ]
    done = run("embed", tmp_path / "m.csv", "--max-failure-rate", "1")
    assert (done["embedded"], done["failures"]) == (2, {"vanished": 1}) and engine.images == 2
    again = run("embed", tmp_path / "m.csv", "--max-failure-rate", "1")
    assert (again["unchanged"], again["failed_before"]) == (4, 1) and engine.images == 2


def test_a_manifest_in_a_bucket_names_what_lies_beside_it(put: Put, bucket: str, tmp_path: Path) -> None:
    text = b"path,label\n1.png,a\nsub dir/../2 3.png,b\n../50%.png,c\n/there.png,d\n"
    table = io.BytesIO()
    parquet.write_table(csv.read_csv(io.BytesIO(text)), table)
    put({"in/m.csv": text, "in/m.parquet": table.getvalue(), "in/1.png": b"1", "in/2 3.png": b"23", "50%.png": b"50"})
    for name in ("m.csv", "m.parquet"):
        assert [(entry.uri, entry.size, entry.label) for entry in list_source(f"s3://{bucket}/in/{name}")] == [
            (f"s3://{bucket}/in/1.png", 1, "a"),
            (f"s3://{bucket}/in/2%203.png", 2, "b"),
            (f"s3://{bucket}/50%25.png", 2, "c"),
            ("file:///there.png", -1, "d"),
        ]
    with pytest.raises(SourceError, match=rf"The manifest s3://{bucket}/none.csv cannot be read: There is no object"):
        list(list_source(f"s3://{bucket}/none.csv"))


def test_many_images_are_asked_about_at_once(put: Put, bucket: str, tmp_path: Path, asked: Proxy) -> None:
    put({"1.png": b"x"})
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"s3://{bucket}/{n}.png\n" for n in range(64)))
    asked.delay = 0.1
    since = time.monotonic()
    entries = list(list_source(tmp_path / "m.csv"))
    assert time.monotonic() - since < 64 * 0.1 / 4
    assert [entry.size for entry in entries] == [-1, 1, *[-1] * 62] and asked.count("HEAD") == 64


# --- tars


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_shards_are_listed_and_read_by_ranges(
    run: Any, put: Put, bucket: str, engine: CountingEngine, tmp_path: Path, asked: Proxy
) -> None:
    shards = [{f"{s}{n}{end}": png(10 * s + n) if end == ".png" else b"ab"[n % 2 : n % 2 + 1]
               for n in range(10) for end in (".png", ".cls")} for s in range(3)]  # fmt: skip
    for s, members in enumerate(shards):
        put({f"t/s-{s}.tar": tar(members)})
        (tmp_path / f"s-{s}.tar").write_bytes(tar(members))
    far, near = list_source(f"s3://{bucket}/t/s-{{0..2}}.tar"), list_source(f"{tmp_path}/s-{{0..2}}.tar")
    kept = [(e.uri.rpartition("/")[2], e.size, e.offset, e.label) for e in far]
    assert kept == [(e.uri.rpartition("/")[2], e.size, e.offset, e.label) for e in near] and len(kept) == 30
    assert asked.count("GET") <= 3 * 3
    done = run("embed", f"s3://{bucket}/t/s-{{0..2}}.tar")
    assert (done["embedded"], done["source"]) == (30, f"s3://{bucket}/t/s-{{0..2}}.tar") and engine.images == 30
    entry = next(iter(far))
    assert places.locate(entry.uri) == Entry(entry.uri, entry.size, entry.mtime_ns, entry.offset)
    assert places.read(entry.uri) == (png(0), entry.size, entry.mtime_ns)
    with pytest.raises(ImageError, match=r"There is no .* any more"):
        places.read(entry.uri + "x")
    with pytest.raises(SourceError, match=r"There is no shard s3://.*s-3.tar: check"):
        list(list_source(f"s3://{bucket}/t/s-{{0..3}}.tar"))


def test_a_tar_with_large_members_is_not_read_whole(put: Put, bucket: str, asked: Proxy) -> None:
    put({"large.tar": tar({f"{n}.png": bytes(2**20) for n in range(8)})})
    with places.open_blob(f"s3://{bucket}/large.tar") as blob:
        members = list(tars.members(blob))
        assert [member.size for member in members] == [2**20] * 8
        assert sum(len(block) for _, block in blob._blocks) <= 2 * objects.MIN_AHEAD
        assert blob.pread(10, blob.size) == b"" and len(blob.pread(100, blob.size - 10)) == 10


def test_a_tar_of_small_members_is_read_in_large_blocks(put: Put, bucket: str, asked: Proxy) -> None:
    put({"small.tar": tar({f"{n}.png": bytes(1000) for n in range(3000)})})
    assert sum(1 for _ in list_source(f"s3://{bucket}/small.tar")) == 3000
    assert asked.count("GET") < 2 * 10  # once more for labels that may lie apart


def test_a_tar_that_changes_while_it_is_read_could_not_be_listed(
    put: Put, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, changes = webdataset._images_of, iter(b"123")

    def changing(*arguments: Any) -> Iterator[Entry]:
        for entry in real(*arguments):
            yield entry
            if entry.uri.endswith("#0.png"):
                data = bytes([next(changes)]) * 2**20
                put({"s.tar": tar({f"{n}.png": data for n in range(6)})})

    monkeypatch.setattr(webdataset, "_images_of", changing)
    put({"s.tar": tar({f"{n}.png": bytes(2**20) for n in range(6)})})
    source = list_source(f"s3://{bucket}/s.tar")
    list(source)
    assert source.incomplete == [f"s3://{bucket}/s.tar#"] and "changed while it was read" in source.problems[0]
    assert next(changes) == ord("3")


def everything(source: Source) -> tuple[Any, ...]:
    return list(source), source.ignored, source.problems, source.incomplete, source.notes


def test_what_is_in_a_tar_is_remembered_until_it_changes(
    put: Put, bucket: str, tmp_path: Path, asked: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_listings, "ROWS", 3)
    first = {f"{n}{end}": b"a" for n in range(5) for end in (".png", ".cls")} | {
        "x/\udcff #%.png": b"y",
        ".h.png": b"z",
    }
    second = {"b.png": b"1", "c.png": b"1", "b.cls": b"late", "notes.txt": b"", "d.cls": b"alone"}
    twice = tar({"a.png": b"1"})[:1024] + tar({"a.png": b"1", "b.json": b"[", "b.png": b"2"})
    for name, data in {"0": tar(first), "1": tar(second), "2": twice, "3": tar(first)[:3000], "4": tar({})}.items():
        put({f"t/{name}.tar": data})
        (tmp_path / f"{name}.tar").write_bytes(data)
    source = list_source(f"s3://{bucket}/t/{{0..4}}.tar")
    found = everything(source)
    near = list_source(f"{tmp_path}/{{0..4}}.tar")
    assert [e[2:] for e in near] == [e._replace(mtime_ns=n.mtime_ns)[2:] for e, n in zip(found[0], near, strict=True)]
    assert (source.ignored, len(source.problems), source.notes) == (near.ignored, len(near.problems), near.notes)
    assert len(found[3]) == 1 and len(found[4]) == 3 and found[1] == {".txt": 1, "hidden": 1}
    asked.requests.clear()
    assert everything(list_source(f"s3://{bucket}/t/{{0..4}}.tar")) == found
    assert {method for method, _ in asked.requests} == {"HEAD"} and asked.count("HEAD") == 5 + 1
    put({"t/4.tar": tar({"new.png": b"1"})})
    assert [entry.uri for entry in source][-1] == f"s3://{bucket}/t/4.tar#new.png"
    assert asked.count("GET", "4.tar") and not asked.count("GET", "0.tar")
    for path in (tmp_path / "copies").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-20])
    again = everything(list_source(f"s3://{bucket}/t/{{0..3}}.tar"))
    assert again[0] == found[0] and asked.count("GET", "0.tar")


def test_an_object_that_is_another_one_than_was_located_is_not_remembered(
    put: Put, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its members would be taken for those of the one before, if that comes back."""
    real = places.locate_all

    def changed_meanwhile(uris: list[str]) -> list[Entry]:
        found = real(uris)
        put({"s.tar": tar({"new.png": b"22"})})
        return found

    put({"s.tar": tar({"old.png": b"1"})})
    with monkeypatch.context() as patch:
        patch.setattr(places, "locate_all", changed_meanwhile)
        assert [entry.size for entry in list_source(f"s3://{bucket}/s.tar")] == [2]
    put({"s.tar": tar({"old.png": b"1"})})
    assert [entry.size for entry in list_source(f"s3://{bucket}/s.tar")] == [1]


# --- tables


def test_tables_below_a_prefix_are_listed_as_those_of_a_folder(
    run: Any, put: Put, bucket: str, engine: CountingEngine, tmp_path: Path
) -> None:
    """As Hugging Face's hub has them, beside what it has besides; and by a pattern."""
    hub = ROOT / "tests" / "golden" / "datasets" / "hub"
    put({f"d/{path.relative_to(hub).as_posix()}": path.read_bytes() for path in hub.rglob("*.parquet")})
    put({"d/README.md": b"#", "d/.cache/old.parquet": b"", "d/data/deep 50%/x.txt": b""})
    near, far = list_source(hub), list_source(f"s3://{bucket}/d/")
    assert far.kind == "tables" and listed(far) == listed(near) and len(list(far)) == 6
    assert (far.notes, far.columns, far.problems, far.ignored) == (near.notes, near.columns, [], {".md": 1, ".txt": 1})
    assert {places.read(e.uri, e.offset, e.size)[0] for e in far} == {places.read(e.uri)[0] for e in near}
    done = run("embed", f"s3://{bucket}/d")
    assert (done["embedded"], done["labels"]["classes"]) == (6, {"cat": 3, "dog": 2})
    assert run("embed", f"s3://{bucket}/d")["unchanged"] == 6 == engine.images
    pattern = f"s3://{bucket}/d/data/{{train-00000-of-00002,train-00001-of-00002,test-00000-of-00001}}.parquet"
    assert [entry.split for entry in list_source(pattern)] == ["train"] * 4 + ["test"] * 2
    one = (hub / "data/train-00001-of-00002.parquet").read_bytes()
    put({"test-data/train-0.parquet": one, "test-data/more.parquet": one})
    assert {entry.split for entry in list_source(f"s3://{bucket}/test-data")} == {None}
    put({"d/data/0.png": png(0)})
    assert list_source(f"s3://{bucket}/d").kind == "prefix"
    put({"e/labels.parquet": b"no table"})
    assert list_source(f"s3://{bucket}/e").kind == "prefix"


def test_far_tables_are_opened_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    monkeypatch.setattr(rows, "open_table", lambda *_: both.wait(10))
    names = [f"s3://b/{n}.parquet" for n in range(99)]
    pair = (names[0], next(name for name in names if hash(name) % 16 != hash(names[0]) % 16))
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda name: rows._opened(name, objects.BUCKETS["s3"]), pair))) == 2
    for name in pair:
        rows.forget(name)


# --- the web


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a plain server of files, which knows no ETag and no ranges."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    (tmp_path / "www").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_web_addresses_in_a_manifest(
    run: Any, web: str, tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MAX_TRIES", 2)
    for n in range(3):
        (tmp_path / "www" / f"{n} ü.png").write_bytes(png(n))
    rows = [f"{web}/{n} ü.png" for n in range(4)] + [f"http://127.0.0.1:{free_ports(1)[0]}/1.png"]
    (tmp_path / "www" / "m.csv").write_text("uri\n" + "\n".join(rows) + "\n")
    done = run("embed", f"{web}/m.csv", "--max-failure-rate", "1")
    assert (done["embedded"], done["failures"]) == (3, {"vanished": 1, "unreadable": 1})
    again = run("embed", tmp_path / "www" / "m.csv", "--max-failure-rate", "1")
    assert again["embedded"] == 0 and engine.images == 3
    with pytest.raises(SourceError, match="Expected: a folder, or a"):
        list_source(f"{web}/folder")
    (tmp_path / "www" / "s.tar").write_bytes(tar({"1.png": bytes(300_000)}))
    assert [entry.size for entry in list_source(f"{web}/s.tar")] == [300_000]


# --- what is refused, in a sentence


def test_sentences(put: Put, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put({"1.jpg": b"x"})
    with pytest.raises(SourceError, match=r"There is no bucket s3://not-there"):
        list(list_source("s3://not-there-at-all/p"))
    with pytest.raises(SourceError, match=rf"s3://{bucket}/1.jpg is a single image: name the folder that holds it"):
        list_source(f"s3://{bucket}/1.jpg")
    with pytest.raises(NoPictures, match=rf"s3://{bucket}/none has no images. Expected: image files"):
        list(list_source(f"s3://{bucket}/none"))
    with pytest.raises(SourceError, match=r"There is no shard s3://.*/x.tar.gz: check the path"):
        list_source(f"s3://{bucket}/x.tar.gz")
    monkeypatch.setattr(buckets, "MAX_TRIES", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(SourceError, match=r"cannot be reached for s3://.*correct AWS_ENDPOINT_URL"):
        list(list_source(f"s3://{bucket}"))


def test_sizes_that_are_not_known(put: Put, bucket: str, monkeypatch: pytest.MonkeyPatch, asked: Proxy) -> None:
    put({"five.jpg": b"12345", "none.jpg": b"", "s.tar": tar({"empty.jpg": b"", "five.jpg": b"12345"})})
    for uri, data in ((f"s3://{bucket}/five.jpg", b"12345"), (f"s3://{bucket}/none.jpg", b"")):
        assert places.read(uri) == (data, len(data), places.locate(uri).mtime_ns)
    assert (asked.count("GET"), asked.count("HEAD")) == (2, 3)  # an empty object has no first byte
    for name, data in (("empty.jpg", b""), ("five.jpg", b"12345")):
        entry = places.locate(f"s3://{bucket}/s.tar#{name}")
        assert places.read(entry.uri, entry.offset, entry.size) == (data, len(data), entry.mtime_ns)
    with pytest.raises(ImageError, match="ends within the member") as caught:
        places.read(f"s3://{bucket}/s.tar#x", 10_000, 500)
    assert caught.value.error_type == "truncated"
    monkeypatch.setattr(uris, "MAX_FILE_BYTES", 4)
    for size in (-1, 5, 3):
        with pytest.raises(ImageError, match=r"^5 bytes are more than the limit of 4") as caught:
            places.read(f"s3://{bucket}/five.jpg", -1, size)
        assert caught.value.error_type == "too_large"
