"""The models that users added, kept beside their graphs or left where they lie."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from command import json_of, penult
from conftest import ROOT
from featurestore.errors import BackboneError, StoreCorrupt
from pipelines.backbones import addition, foreign, models

ZOO = ROOT / "tests" / "golden" / "models"
FILES = ("net.keras", "net.h5", "saved_model", "net.onnx", "external.onnx", "net.tflite")


def moved(tmp_path: Path, file: str) -> Path:
    """A model in a folder of its own, with what belongs to it."""
    folder = tmp_path / "given"
    shutil.copytree(ZOO, folder)
    return folder / file


def contents(model: Path) -> dict[str, bytes]:
    files = models.files_of(model)
    return {path.relative_to(files[0].parent).as_posix(): path.read_bytes() for path in files}


@pytest.mark.everywhere
@pytest.mark.parametrize("file", FILES)
def test_a_model_is_kept_as_it_was_given(place: Path, tmp_path: Path, file: str) -> None:
    model = moved(tmp_path, file)
    before = contents(model)
    spec = tmp_path / "spec.toml"
    spec.write_text((ZOO / "net.toml").read_text().split("[reference]")[0])
    backbone = addition.add(place, "mine", model, spec, unproved=True).backbone
    shutil.rmtree(model.parent)
    with foreign.find(place, "mine").network.model_file() as kept:
        assert contents(kept) == before and models.digest_of(models.files_of(kept)) == backbone.sha256
    assert not kept.exists()


def test_a_model_of_openvino_is_its_graph(tmp_path: Path) -> None:
    store = tmp_path / "s"
    backbone = addition.add(store, "mine", ZOO / "net.xml", ZOO / "net.toml").backbone
    assert backbone.original == "" and not list(store.glob("backbones/models/*.zip"))
    with pytest.raises(BackboneError, match="only the graph"), backbone.model_file():
        pass


def test_two_specs_share_a_model_and_one_archive(tmp_path: Path) -> None:
    store = tmp_path / "s"
    addition.add(store, "one", ZOO / "net.onnx", ZOO / "net.toml")
    other = tmp_path / "other.toml"
    other.write_text((ZOO / "net.toml").read_text().split("[reference]")[0].replace("0.875", "1.0"))
    addition.add(store, "two", ZOO / "net.onnx", other, unproved=True)
    assert len(list(store.glob("backbones/models/*.zip"))) == 1
    assert len(list(store.glob("backbones/models/*.json"))) == 2


def test_a_model_that_is_not_copied_is_found_where_it_lies_and_only_as_it_was(tmp_path: Path) -> None:
    store, model = tmp_path / "s", moved(tmp_path, "external.onnx")
    add = ("backbones", "add", "mine", model, "--spec", ZOO / "net.toml", "--store", store)
    told = json_of(penult(*add, "--no-copy", "--json"))
    assert told["original"] == str(model.resolve()) and not list(store.glob("backbones/models/*.zip"))
    backbone = foreign.find(store, "mine").network
    with backbone.model_file() as found:
        assert found == model.resolve()
    assert penult("verify", "--store", store).returncode == 0
    data = next(path for path in models.files_of(model) if path != model)
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(BackboneError, match=r"external\.onnx as it was added"), backbone.model_file():
        pass
    model.unlink()
    with pytest.raises(BackboneError, match=r"external\.onnx as it was added"), backbone.model_file():
        pass


def test_who_left_a_model_may_have_it_copied_later_and_the_copy_stays(tmp_path: Path) -> None:
    store, add = tmp_path / "s", (ZOO / "net.onnx", ZOO / "net.toml")
    assert addition.add(store, "mine", *add, copy=False).new
    again = addition.add(store, "mine", *add)
    assert not again.new and again.backbone.original == "net.onnx"
    assert addition.add(store, "mine", *add, copy=False).backbone.original == "net.onnx"
    assert foreign.find(store, "mine").network.original == "net.onnx"  # type: ignore[attr-defined]


@pytest.mark.parametrize("harm", ["changed", "cut", "gone", "another"])
def test_a_damaged_model_is_found_by_verify_and_made_again(tmp_path: Path, harm: str) -> None:
    store = tmp_path / "s"
    add = ("backbones", "add", "mine", ZOO / "net.onnx", "--spec", ZOO / "net.toml", "--store", store)
    assert penult(*add).returncode == 0
    (archive,) = store.glob("backbones/models/*.zip")
    data = archive.read_bytes()
    half = len(data) // 2
    if harm == "gone":
        archive.unlink()
    elif harm == "another":  # a sound archive, of another model
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr("net.onnx", b"another")
    else:
        archive.write_bytes(data[:half] if harm == "cut" else data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
    found = penult("verify", "--store", store)
    assert found.returncode == 1 and archive.name in found.stderr
    with pytest.raises(StoreCorrupt, match=archive.name), foreign.find(store, "mine").network.model_file():
        pass
    assert penult(*add).returncode == 0
    assert archive.read_bytes() == data and penult("verify", "--store", store).returncode == 0
