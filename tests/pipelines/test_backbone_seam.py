"""A backbone from outside the packages, a graph without a Keras model, registered and used as the others are."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import write_picture
from featurestore import canary
from featurestore.errors import BackboneError, UsageError
from featurestore.spec import Preprocessing
from featurestore.store import FeatureStore
from heads import artifact
from pipelines import commands
from pipelines.backbones import table
from pipelines.backbones.base import Backbone, Normalization
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import open_engine
from pipelines.backbones.graphs import import_openvino
from pipelines.backbones.table import Tap, resolve
from pipelines.embedding import worker
from pipelines.images.decoder import decode

SIDE, CELLS = 64, 4
NUMBERS = Normalization(mean=(10.0, 20.0, 30.0), std=(50.0, 60.0, 70.0), channels="bgr")


@dataclass(frozen=True)
class MeanColours(Backbone):
    """The mean colour of each cell of a grid."""

    folder: Path

    def published(self, top: bool) -> Path:
        return self.folder / "graph.xml"

    def graph(self, tap: Tap) -> Path:
        return tap.weights_file

    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        return [("cells", (CELLS, CELLS, 3))]


def draw(path: Path) -> None:
    """Write the graph: float32 (n, s, s, 3) → cells, float32 (n, 4, 4, 3)."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, SIDE, SIDE, 3], np.float32, "pixels")
    shape = np.array([-1, CELLS, SIDE // CELLS, CELLS, SIDE // CELLS, 3])
    cells = ops.reduce_mean(ops.reshape(pixels, shape, False), np.array([2, 4]), False)
    cells.output(0).set_names({"cells"})
    openvino.save_model(openvino.Model([cells], [pixels], "toy"), path, compress_to_fp16=False)


@pytest.fixture(autouse=True)
def toy(tmp_path: Path) -> Iterator[MeanColours]:
    draw(tmp_path / "graph.xml")
    backbone = MeanColours("mean-colours", SIDE, 3, NUMBERS, "cells", tmp_path)
    table.register(backbone)
    worker.engine_for.cache_clear()
    yield backbone
    worker.engine_for.cache_clear()
    del table.TABLE[backbone.name]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    commands.app([*map(str, arguments), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def expected(pixels: np.ndarray) -> np.ndarray:
    """The cells of images uint8 (n, s, s, 3), as said in words: blue first, in units of the deviation."""
    blocks = pixels.astype(np.float64).reshape(-1, CELLS, SIDE // CELLS, CELLS, SIDE // CELLS, 3).mean(axis=(2, 4))
    return (blocks[..., ::-1] - [10, 20, 30]) / [50, 60, 70]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Images of the size that the toy sees, so that nothing is resized."""
    for number in range(60):
        write_picture(tmp_path / "corpus" / ("a" if number % 3 else "b") / f"{number}.png", number, SIDE)
    return tmp_path / "corpus"


def test_it_is_listed_embeds_trains_and_predicts(
    toy: MeanColours, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ("--store", tmp_path / "store")
    row = {row["name"]: row for row in run(capsys, "backbones")}["mean-colours"]
    assert row == {"name": "mean-colours", "input_size": SIDE, "width": 3, "layer": "cells", "weights": "yes"}
    assert run(capsys, "backbones", "mean-colours") == [{"layer": "cells", "shape": [CELLS, CELLS, 3]}]
    done = run(capsys, "embed", corpus, *store, "--backbone", "mean-colours", "--pooling", "none")
    assert (done["embedded"], done["failed"]) == (60, 0)

    opened = FeatureStore(tmp_path / "store")
    spec = opened.spec(done["feature_set"])
    assert spec.weights_sha256 == hashlib.sha256((tmp_path / "graph.xml").read_bytes()).hexdigest()
    assert json.loads(spec.preprocessing.normalization)["mean"] == [10, 20, 30]
    (told,) = run(capsys, "predict", corpus / "b" / "0.png", *store, "--head", trained(capsys, store))
    assert told["label"] in ("a", "b")
    new = write_picture(tmp_path / "new.png", 99, SIDE)
    (told,) = run(capsys, "predict", new, *store)
    assert told["label"] in ("a", "b") and "error" not in told
    assert run(capsys, "embed", corpus, *store, "--backbone", "mean-colours", "--pooling", "none")["embedded"] == 0


@dataclass(frozen=True)
class CutColours(MeanColours):
    """The same of squares that are made as its own preprocessing says."""

    def preprocessing(self, tap: Tap) -> Preprocessing:
        return replace(super().preprocessing(tap), crop="shortest", resize="plain-bicubic", crop_ratio=0.8)


def test_its_preprocessing_makes_the_squares(
    toy: MeanColours, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are embedded, those of the canary, and those of images that are predicted."""
    table.TABLE[toy.name] = cut = CutColours(**vars(toy))
    store, taken = ("--store", tmp_path / "store"), ("--backbone", toy.name, "--pooling", "none", "--dtype", "float32")
    draw = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "corpus" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(number % 2 * 100, 256, (70, 130, 3), np.uint8)).save(path)
    done = run(capsys, "embed", tmp_path / "corpus", *store, *taken)
    opened = FeatureStore(tmp_path / "store")
    seen = opened.spec(done["feature_set"]).preprocessing
    assert seen == resolve(toy.name).preprocessing == cut.preprocessing(resolve(toy.name))
    assert (seen.crop, seen.resize, seen.resized_side) == ("shortest", "plain-bicubic", 80)
    data = opened.dataset(done["feature_set"])
    squares = np.stack([decode(Path(uri.removeprefix("file://")).read_bytes(), seen).pixels for uri in data.uris])
    np.testing.assert_allclose(data.X, expected(squares).reshape(40, -1), rtol=1e-5, atol=1e-5)
    kept = canary.read(tmp_path / "store" / "features" / f"{done['feature_set']}.lance")
    assert kept is not None and len(kept.vectors) == 2
    for name, vector in kept.vectors.items():
        square = decode((Path(table.__file__).parent / name).read_bytes(), seen).pixels
        np.testing.assert_allclose(vector, expected(square).reshape(-1), rtol=1e-5, atol=1e-5)

    head, _ = artifact.load(tmp_path / "store" / "runs" / trained(capsys, store))
    new = tmp_path / "new.png"
    Image.fromarray(draw.integers(0, 256, (90, 65, 3), np.uint8)).save(new)
    (told,) = run(capsys, "predict", new, *store)
    X = expected(decode(new.read_bytes(), seen).pixels).reshape(1, -1).astype(np.float32)
    assert told["probability"] == pytest.approx(head.probabilities(X).max(), abs=1e-5)


def trained(capsys: pytest.CaptureFixture[str], store: tuple[object, ...]) -> str:
    return str(run(capsys, "train", *store, "--head", "logreg")["head_id"])


@pytest.mark.parametrize("pooling", ["none", "avg", "max"])
def test_its_features_are_those_of_its_numbers(pooling: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    cells = expected(pixels)
    wanted = {"none": cells.reshape(5, -1), "avg": cells.mean(axis=(1, 2)), "max": cells.max(axis=(1, 2))}[pooling]
    engine = open_engine(resolve("mean-colours", pooling=pooling), EngineOptions(batch_size=2))
    assert engine.width == wanted.shape[1]
    np.testing.assert_allclose(engine(pixels), wanted, rtol=1e-5, atol=1e-5)


def test_other_numbers_are_another_set(toy: MeanColours) -> None:
    """What happens to pixels is part of the identity, and so is the graph."""
    texts = {str(Normalization(**change)) for change in ({}, {"mean": (1.0, 0.0, 0.0)}, {"channels": "bgr"})}
    assert len(texts) == 3
    before = table.feature_spec(resolve(toy.name), 3)
    draw(toy.folder / "other.xml")
    (toy.folder / "other.xml").write_text((toy.folder / "other.xml").read_text() + "\n")
    assert table.feature_spec(resolve(toy.name, toy.folder / "other.xml"), 3).fingerprint() != before.fingerprint()


def test_what_needs_keras_refuses_it(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ("--store", tmp_path / "store")
    run(capsys, "embed", corpus, *store, "--backbone", "mean-colours")
    trained(capsys, store)
    for words in (
        ["finetune", *store, "--unfreeze-from", "cells"],
        ["export", *store, "--to", tmp_path / "model"],
        ["embed", corpus, *store, "--backbone", "mean-colours", "--engine", "tensorflow", "--dtype", "float32"],
    ):
        monkeypatch.setattr(sys, "argv", ["penult", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            commands.main()
        assert end.value.code == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("penult: mean-colours is a graph without a Keras model, so it can be neither fine-tuned")
    told = run(capsys, "export", *store, "--to", tmp_path / "graph", "--format", "openvino")
    assert told["parity"]["max_difference"] < 1e-3
    assert not (tmp_path / "model").exists()
    assert len(FeatureStore(tmp_path / "store").runs()) == 2


def test_a_layer_or_a_graph_that_is_not_there_is_refused(toy: MeanColours) -> None:
    with pytest.raises(UsageError, match="mean-colours has no layer 'cell': the nearest names are cells"):
        open_engine(resolve(toy.name, layer="cell"))
    (toy.folder / "broken.xml").write_text("<net>")
    with pytest.raises(BackboneError, match=r"broken\.xml is no graph that OpenVINO reads"):
        open_engine(resolve(toy.name, toy.folder / "broken.xml"))
    (toy.folder / "graph.xml").unlink()
    assert {row.name: row.weights for row in table.table()}[toy.name] == "no"
    with pytest.raises(BackboneError, match=r"no file .*graph\.xml with the weights of mean-colours"):
        open_engine(resolve(toy.name))


def test_a_name_is_given_once(toy: MeanColours) -> None:
    with pytest.raises(ValueError, match="there is a backbone mean-colours already"):
        table.register(toy)
