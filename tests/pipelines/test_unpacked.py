"""Compressed tars: listed and read as the tars in them, unpacked once, on a disk and in a bucket."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pytest

from conftest import CountingEngine, write_picture
from featurestore.errors import ImageError, SourceError, StoreError
from featurestore.storage import cache
from object_servers import free_ports
from pipelines.sources import places, unpacked, uris
from pipelines.sources.corpus import Source, list_source


def zstandard(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress,
    ".TGZ": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),  # as pigz and bgzip write them
    ".tar.bz2": bz2.compress,
    ".tbz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".txz": lzma.compress,
    ".tar.zst": zstandard,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "copies"))
    monkeypatch.setattr(unpacked, "_copies", {})


@pytest.fixture
def tar(tmp_path: Path) -> bytes:
    """Four images with their labels."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for number in range(4):
            made.add(write_picture(tmp_path / "images" / f"{number}.png", number), f"ü {number}.png")
            label = tarfile.TarInfo(f"ü {number}.cls")
            label.size = 1
            made.addfile(label, io.BytesIO(b"ab"[number % 2 :][:1]))
    return file.getvalue()


@pytest.fixture(params=["disk", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], str]:
    """Write a file, on a disk or in a bucket; return where it is."""
    if request.param == "disk":

        def on_disk(name: str, data: bytes) -> str:
            (tmp_path / name).write_bytes(data)
            return str(tmp_path / name)

        return on_disk
    server, bucket = request.getfixturevalue("seaweedfs"), request.getfixturevalue("bucket")

    def in_bucket(name: str, data: bytes) -> str:
        obstore.put(server.store(bucket), name, data)
        return f"s3://{bucket}/{name}"

    return in_bucket


def said(source: Source) -> list[tuple[Any, ...]]:
    return [(e.uri.partition("#")[2], e.size, e.offset, e.label, e.split) for e in source]


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "copies").rglob("unpacked.tar"))


@pytest.mark.parametrize("ending", PACKERS)
def test_it_is_the_tar_in_it(tmp_path: Path, tar: bytes, put: Callable[[str, bytes], str], ending: str) -> None:
    plain, packed = list_source(put("s.tar", tar)), list_source(put(f"s{ending}", PACKERS[ending](tar)))
    assert said(packed) == said(plain) and len(said(plain)) == 4 and packed.kind == "tar"
    for entry in packed:
        data = (tmp_path / "images" / f"{uris.member_of(entry.uri)[2:]}").read_bytes()
        read = (data, len(data), entry.mtime_ns)
        assert places.read(entry.uri, entry.offset, entry.size) == places.read(entry.uri) == read
        assert places.locate(entry.uri) == entry._replace(label=None)
    (copy,) = copies(tmp_path)
    assert copy.read_bytes() == tar
    with places.open_blob(entry.uri) as blob:
        assert blob.mtime_ns == entry.mtime_ns
    with pytest.raises(ImageError, match="more than the limit"):
        places.read(entry.uri, entry.offset, 2**40)
    with pytest.raises(ImageError, match=r"There is no .*#x any more"):
        places.read(f"{entry.uri.partition('#')[0]}#x")


def test_it_is_embedded_once_and_unpacked_once(
    tmp_path: Path, tar: bytes, put: Callable[[str, bytes], str], run: Any, engine: CountingEngine
) -> None:
    location = put("s-0.tar.gz", gzip.compress(tar))
    first = run("embed", location.replace("-0", "-{0..0}"))
    assert (first["embedded"], first["labels"]["classes"]) == (4, {"a": 2, "b": 2}) and engine.images == 4
    assert first["source"].endswith("/s-{0..0}.tar.gz")
    (copy,) = copies(tmp_path)
    before = copy.stat().st_ino
    again = run("embed", location.replace("-0", "-{0..0}"))
    assert (again["unchanged"], again["embedded"]) == (4, 0) and copy.stat().st_ino == before
    assert run("verify") == []
    put("s-0.tar.gz", gzip.compress(tar, 1))  # other bytes, the same images
    changed = run("embed", location.replace("-0", "-{0..0}"))
    assert (changed["changed"], changed["embedded"]) == (4, 0) and len(copies(tmp_path)) == 2


def test_nothing_more_is_asked_of_the_server(
    tmp_path: Path, tar: bytes, put: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = list(list_source(put("s.tar.gz", gzip.compress(tar))))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    for entry in entries:
        assert places.read(entry.uri, entry.offset, entry.size)[1:] == (entry.size, entry.mtime_ns)
        assert places.in_flight(entry.uri) == 1


def test_one_that_changes_while_it_is_unpacked_is_not_used(tmp_path: Path, tar: bytes) -> None:
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(tar))
    uri = uris.uri_of(tmp_path / "s.tar.gz")
    before = unpacked.Unpacked(places.Files())
    with pytest.raises(OSError, match="changed while it was read"):
        before._unpacked(uri, uris.locate(uri)._replace(mtime_ns=1))
    assert not copies(tmp_path)


def test_a_copy_that_went_away_is_made_again(tmp_path: Path, tar: bytes, put: Callable[[str, bytes], str]) -> None:
    (entry, *_) = list_source(put("s.tar.xz", lzma.compress(tar)))
    (copy,) = copies(tmp_path)
    os.utime(copy, (1, 1))
    places.read(entry.uri, entry.offset, entry.size)
    assert copy.stat().st_mtime > 1e9  # it is in use
    copy.unlink()
    data, *_ = places.read(entry.uri, entry.offset, entry.size)
    assert data == (tmp_path / "images" / "0.png").read_bytes() and copy.is_file()


@pytest.mark.parametrize("ending", PACKERS)
def test_a_damaged_one_is_told_and_none_of_it_is_used(
    tmp_path: Path, tar: bytes, put: Callable[[str, bytes], str], ending: str
) -> None:
    packed = PACKERS[ending](tar)
    for data in (packed[: len(packed) // 2], b"no such format", packed[:100] + b"\xff" * 100 + packed[200:]):
        location = put(f"s{ending}", data)
        source = list_source(location)
        with pytest.raises(SourceError, match=r"has no images.*(cannot be read|is damaged).*[^.]\.$"):
            list(source)
        assert source.incomplete == [f"{source.uri}#"]
        with pytest.raises(ImageError) as caught:
            places.read(f"{source.uri}#%C3%BC%200.png", 10**6, 10)
        assert caught.value.error_type in ("unreadable", "truncated")


def test_a_tar_for_which_there_is_no_room_is_told(
    tmp_path: Path, put: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.LIMIT, "1MB")
    monkeypatch.setattr(unpacked, "STEP", 2 * unpacked.BLOCK)
    location = put("bomb.tar.gz", gzip.compress(bytes(64 * 2**20)))
    with pytest.raises(SourceError, match=r"no room to unpack .*bomb.tar.gz .* with --cache-limit"):
        list(list_source(location))
    assert not [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, tar: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "s.tgz").write_bytes(gzip.compress(tar))
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="file"):
        list(list_source(tmp_path / "s.tgz"))
