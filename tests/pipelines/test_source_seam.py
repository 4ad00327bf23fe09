"""A kind of source and a place from outside the packages, registered and used as the others are."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import CountingEngine
from featurestore.errors import ImageError, SourceError
from pipelines.predict import predict
from pipelines.sources import kinds, places
from pipelines.sources.base import Entry, Place, SourceKind
from pipelines.sources.corpus import list_source
from pipelines.sources.listing import Listing

SOURCE = "toy://colours"


class Paints(Place):
    """Images of one colour, ``toy://colours/rrggbb``, each with a version that changes as an ETag does."""

    scheme = "toy"

    def __init__(self) -> None:
        self.versions = {f"50{green:02x}{blue}": "first" for green in range(40) for blue in ("00", "a0")}
        self.reads = 0

    def canonical(self, uri: str) -> str:
        if not re.fullmatch(r"toy://colours(/[0-9a-f]{6})?", uri.lower()):
            raise SourceError(f"Expected: a URI such as toy://colours/ff0000. Got: {uri}.")
        return uri.lower()

    def locate(self, uri: str) -> Entry:
        version = self.versions.get(uri.rpartition("/")[2])
        return Entry(uri, -1, 0) if version is None else Entry(uri, len(self._png(uri)), token(version))

    def read(self, uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
        self.reads += 1
        found = self.locate(uri)
        if found.size < 0:
            raise ImageError("vanished", f"There is no paint {uri}.")
        return self._png(uri), found.size, found.mtime_ns

    def _png(self, uri: str) -> bytes:
        colour = uri.rpartition("/")[2]
        pixels = np.full((16, 16, 3), list(bytes.fromhex(colour)), np.uint8)
        pixels[0, 0] = len(self.versions[colour])  # another version, another content
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


class Colours(SourceKind):
    """All paints, labelled by what they have more of."""

    name = "box of paints"
    looked_for = "at least one paint"

    def __init__(self, paints: Paints) -> None:
        self.paints = paints

    def owns(self, location: str) -> bool:
        return location.startswith("toy://")

    def entries(self, listing: Listing) -> Iterator[Entry]:
        for colour in sorted(self.paints.versions):
            found = self.paints.locate(f"{SOURCE}/{colour}")
            yield Entry(found.uri, found.size, found.mtime_ns, label="blue" if colour[4:] > colour[:2] else "red")


def token(version: str) -> int:
    return int.from_bytes(sha256(version.encode()).digest()[:8]) >> 1


@pytest.fixture(autouse=True)
def paints(monkeypatch: pytest.MonkeyPatch) -> Paints:
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    monkeypatch.setattr(places, "_PLACES", dict(places._PLACES))
    made = Paints()
    places.register(made)
    kinds.register(Colours(made))
    return made


def test_only_what_changed_is_read_again(run: Any, paints: Paints, engine: CountingEngine) -> None:
    first = run("embed", SOURCE)
    assert (first["source"], first["embedded"], first["failed"]) == (SOURCE, 80, 0)
    assert first["labels"]["classes"] == {"blue": 40, "red": 40} and engine.images == paints.reads == 80
    again = run("embed", SOURCE)
    assert (again["unchanged"], again["embedded"]) == (80, 0) and engine.images == paints.reads == 80
    paints.versions["5001a0"] = "second"
    changed = run("embed", SOURCE)
    assert (changed["changed"], changed["embedded"]) == (1, 1) and engine.images == paints.reads == 81
    del paints.versions["5001a0"]
    assert run("embed", SOURCE)["removed"] == 1
    (told,) = run("status")["sources"]
    assert told == {"source": SOURCE, "listed": 79, "removed": 1, "failed": 0}
    assert run("verify") == []
    assert run("forget", "toy://COLOURS")["images"] == 79


def test_its_pictures_are_in_the_report_and_predicted(run: Any, paints: Paints, tmp_path: Path) -> None:
    run("embed", SOURCE)
    result = run("compare", "--heads", "ncm,knn")
    assert result["winner"]["test"] == 1.0
    shown = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", Path(result["report"]).read_text())
    assert shown and all(Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 160) for data in shown)
    (told,) = run("predict", f"{SOURCE}/5001a0", "--head", result["winner"]["head_id"])
    assert (told["uri"], told["label"]) == (f"{SOURCE}/5001a0", "blue")
    (gone,) = predict([f"{SOURCE}/ffffff"], tmp_path / "store")
    assert (gone.label, gone.error_type, gone.error) == (None, "vanished", f"There is no paint {SOURCE}/ffffff.")


def test_a_manifest_may_name_its_pictures(run: Any, paints: Paints, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri,label\ntoy://colours/5001A0,x\ntoy://colours/ffffff,x\n")
    there, missing = list_source(manifest)
    assert there == Entry("toy://colours/5001a0", there.size, token("first"), -1, "x") and missing.size == -1
    manifest.write_text("uri\ntoy://elsewhere\n")
    with pytest.raises(SourceError, match=r"m.csv, line 2, row 1: Expected: a URI such as toy://colours/ff0000"):
        list(list_source(manifest))
    manifest.write_text("uri\nftp://bucket/1.png\n")
    with pytest.raises(
        SourceError,
        match=r"Expected: a path, or a URI that begins with file://, s3://, .*, http:// or toy://. Got: ftp://",
    ):
        list(list_source(manifest))


def test_what_is_no_longer_registered_is_told(run: Any, paints: Paints, monkeypatch: pytest.MonkeyPatch) -> None:
    run("embed", SOURCE)
    monkeypatch.delitem(places._PLACES, "toy")
    with pytest.raises(
        ImageError, match=r"Expected: a URI that begins with file://, .* or http://. Got: toy://colours/5001a0"
    ) as caught:
        places.read(f"{SOURCE}/5001a0")
    assert caught.value.error_type == "unreadable"
    with pytest.raises(ImageError, match="Got: no scheme"):
        places.locate("no scheme")


def test_a_source_where_nothing_looks_is_told(paints: Paints) -> None:
    with pytest.raises(
        SourceError,
        match=r"^Expected: a path, or a URI that begins with file://, s3://, .*, http:// or toy://. Got: ftp://b.",
    ):
        list_source("ftp://b")


def test_an_empty_one_says_what_it_looked_for(paints: Paints) -> None:
    paints.versions.clear()
    with pytest.raises(SourceError, match=r"toy://colours has no images. Expected: at least one paint. Got: nothing"):
        list(list_source(SOURCE))
