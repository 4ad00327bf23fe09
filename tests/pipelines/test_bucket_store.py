"""The command line on a store in a bucket: what a night does, and what keeps a store well."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, CountingEngine
from featurestore.maintenance.verify import verify
from featurestore.storage import buckets
from featurestore.storage.base import location
from pipelines import commands
from pipelines.embedding import worker

SHARDS = ("--shard-images", "10", "--batch-size", "8")


def penult(*arguments: object) -> tuple[int, Any, str]:
    """Run a command as its entry point does: exit code, JSON, and what was said to people."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["penult", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as end:
            commands.main()
    lines = out.getvalue().splitlines()
    return int(end.value.code or 0), json.loads(lines[-1]) if lines else None, err.getvalue()


def done(*arguments: object) -> Any:
    code, told, said = penult(*arguments)
    assert code == 0, said
    return told


def test_a_network_of_ones_own_lies_in_the_bucket(corpus: Path, bucket_place: PurePath, tmp_path: Path) -> None:
    store, own = ("--store", str(bucket_place)), ("--backbone", "own")
    models = ROOT / "tests" / "golden" / "models"
    worker.engine_for.cache_clear()
    assert done("backbones", "add", "own", models / "net.onnx", "--spec", models / "net.toml", *store)["new"]
    assert done("embed", corpus, *store, *own)["embedded"] == 30
    assert done("embed", corpus, *store, *own)["unchanged"] == 30
    assert not done("backbones", "add", "own", models / "net.onnx", "--spec", models / "net.toml", *store)["new"]
    assert done("verify", *store) == []
    done("copy", bucket_place, tmp_path / "copy")
    worker.engine_for.cache_clear()
    assert done("embed", corpus, "--store", tmp_path / "copy", *own)["unchanged"] == 30
    assert done("verify", "--store", tmp_path / "copy") == []


@pytest.mark.usefixtures("few_resamples")
def test_a_store_in_a_bucket_takes_every_command(
    corpus: Path, bucket_place: PurePath, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENULT_STORE", str(bucket_place))
    (corpus / "a" / "broken.png").write_bytes(b"no picture")
    first = done("embed", corpus, *SHARDS)
    assert (first["embedded"], first["failures"]) == (30, {"not_an_image": 1}) and engine.images == 30
    assert done("embed", corpus, *SHARDS)["unchanged"] == 31 and engine.images == 30
    told = done("status")
    assert told["catalog"]["ok"] == 30 and told["store"] == str(bucket_place) and told["bytes"] > 0

    compared = done("compare", "--heads", "ncm,logreg", "--C", "1")
    page = buckets.get(compared["report"])[0]
    assert compared["report"].startswith(f"{bucket_place}/runs/") and b"<html" in page and b"data:image" in page
    head = compared["run_id"]
    assert done("promote", head)["head_id"] == head and done("champion")["champion"] == head
    picture = next((corpus / "b").glob("*.png"))
    [row] = done("predict", picture)
    assert row["label"] in "abc"
    assert [run["run"].split("-")[1] for run in done("runs")] == ["embed", "embed", "compare"]

    (tmp_path / "labels.csv").write_text(f"uri,label\n{picture.as_uri()},other\n")
    assert done("label", tmp_path / "labels.csv")["labels"] == {"other": 1}
    done("train", "--head", "ncm")
    assert done("verify") == []
    assert done("doctor")["repairs"] == []
    done("gc", "--older-than", "0s")
    assert done("verify") == [] and done("embed", corpus, *SHARDS)["unchanged"] == 31
    assert not list(tmp_path.glob("s3*")), "a folder was made where a bucket was meant"


@pytest.mark.usefixtures("few_resamples")
def test_nights_over_images_and_a_store_in_buckets(
    bucket_place: PurePath, engine: CountingEngine, tmp_path: Path
) -> None:
    photos, store = bucket_place.parent / "photos", ("--store", str(bucket_place))
    for number in range(60):
        put_picture(photos, number)
    recipe = tmp_path / "nightly.toml"
    recipe.write_text(
        f'[source]\nlocation = "{photos}"\n[compare]\nheads = ["ncm"]\n'
        '[promote]\nrule = "better"\nmin_test_images = 1\n'
    )
    first = done("retrain", recipe, *store, "--date", "2026-11-01")
    assert first["decision"] == "promoted" and first["embed"]["embedded"] == engine.images == 60
    assert done("champion", *store)["champion"] == first["challenger"]["head_id"]
    assert done("retrain", recipe, *store, "--date", "2026-11-01") == first | {"repeated": True}
    assert done("retrain", recipe, *store, "--date", "2026-11-02")["decision"] == "unchanged"
    put_picture(photos, 60)
    third = done("retrain", recipe, *store, "--date", "2026-11-03")
    assert (third["embed"]["new"], third["embed"]["unchanged"], engine.images) == (1, 60, 61)
    assert third["decision"] == "kept" and buckets.head(third["report"])
    assert done("verify", *store) == []


def put_picture(photos: PurePath, number: int) -> None:
    """Put a picture into a bucket whose class is how bright it is."""
    noise = np.random.default_rng(number).integers(0, 40, (16, 16, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise + np.uint8(90 * (number % 3))).save(data, "png")
    buckets.put(str(photos / "abc"[number % 3] / f"{number:02}.png"), data.getvalue())


def test_damage_is_found_and_mended_in_a_bucket(
    corpus: Path, bucket_place: PurePath, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENULT_STORE", str(bucket_place))
    done("embed", corpus, *SHARDS)
    catalog = sorted(one.uri for one in buckets.listed(f"{bucket_place}/catalog.lance/_versions"))
    newest = min(uri for uri in catalog if uri.endswith(".manifest"))
    buckets.put(newest, b"\0" * len(buckets.get(newest)[0]))
    code, found, said = penult("verify")
    assert code == 1 and found[0]["path"] == newest.removeprefix(f"{bucket_place}/") and "penult doctor" in said
    mended = done("doctor")
    assert [one["table"] for one in mended["repairs"]] == ["catalog.lance"]
    assert not list(verify(bucket_place)) and done("embed", corpus, *SHARDS)["embedded"] == 0
    assert engine.images == 30


def test_no_store_and_no_bucket_are_sentences(bucket_place: PurePath) -> None:
    code, _, said = penult("status", "--store", bucket_place)
    assert code == 1 and said == (
        f"penult: There is no penult store at {bucket_place}: `penult embed SOURCE --store {bucket_place}` makes one.\n"
    )
    code, _, said = penult("status", "--store", "s3://no-such-bucket/store")
    assert code == 1 and said.startswith("penult: There is no bucket s3://no-such-bucket at http://127.0.0.1:")


@pytest.mark.parametrize("place", ["ftp://host/store", "s3://", "gs:///", "file:///store", "S3://bucket/store"])
def test_a_place_that_no_storage_has_is_a_sentence_and_makes_no_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = penult("embed", tmp_path, "--store", place)
    assert code == 2 and said == (
        "penult: Expected: a folder, or a place such as s3://bucket/prefix, gs://bucket/prefix, az://bucket/prefix. "
        f"Got: {place}.\n"
    )
    assert not list(tmp_path.iterdir())
    assert location("a:b").name == "a:b" and location("a/b://c") == Path("a/b:/c"), "those are folders"


def test_storage_options_reach_the_client(bucket_place: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    given = ("status", "--store", bucket_place, "--storage-option")
    code, _, said = penult(*given, "endpoint=http://127.0.0.1:9", "--storage-option", "region")
    assert code == 2 and "with a KEY of endpoint, region" in said
    monkeypatch.setattr(buckets, "MAX_TRIES", 1)
    buckets._client.cache_clear()
    code, _, said = penult(*given, "endpoint=http://127.0.0.1:8")
    assert code == 1 and said.startswith("penult: http://127.0.0.1:8 cannot be reached for s3://")
    buckets._client.cache_clear()
