"""Exported models: what their own runtimes say is what penult says; a model that differs is never kept."""

import hashlib
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import builders
import seeded
from featurestore.errors import EngineError, HeadError, SourceError, SpecMismatch, StoreCorrupt, UsageError
from featurestore.store import FeatureStore
from heads import artifact, registry
from heads.spec import HeadSpec
from pipelines import commands
from pipelines.backbones import networks
from pipelines.embedding.embed import embed
from pipelines.export import FORMATS, PICTURES, export
from pipelines.options import EmbedOptions, ExportOptions, PredictOptions, TrainOptions
from pipelines.predict import predict
from pipelines.training import train_head

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "export.md"
SIDE = 32


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A store of real images on the first blocks of EfficientNet-Lite0 with its real weights, and a head's id."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits(n_class=3)
    for number in range(120):
        path = folder / "corpus" / f"class {data.target[number]}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[number] * 15).astype(np.uint8)).resize((40, 30)).save(path)
    options = EmbedOptions(layer="block2a_project_bn", input_size=SIDE)
    embed(str(folder / "corpus"), folder / "store", options)
    return folder, train_head(folder / "store", TrainOptions("logreg", {"C": 1.0}))["head_id"]


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """A backbone that was built serves all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build", cache(networks.build))
        yield


@pytest.fixture
def moved(digits, tmp_path):
    """The same in a place of its own: a store whose images can be taken away."""
    folder, head_id = digits
    shutil.copytree(folder / "store", tmp_path / "store")
    yield tmp_path / "store", folder / "corpus", head_id


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_answers_like_penult_in_its_own_runtime(format, digits, tmp_path, monkeypatch):
    """The recipe's own snippets, word for word."""
    for package in FORMATS[format].packages:
        pytest.importorskip(package)
    folder, head_id = digits
    done = export(folder / "store", tmp_path / "photos", ExportOptions(format), head_id)
    assert Path(done["path"]).exists() and done["bytes"] > 10_000 and done["parity"]["pictures"] == PICTURES
    assert (tmp_path / "photos" / "labels.txt").read_text() == "class 0\nclass 1\nclass 2\n"
    assert json.loads((tmp_path / "photos" / "model.json").read_text())["head_id"] == head_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]

    text = RECIPE.read_text()
    first = re.search(r"```python\n(import json.*?)```", text, re.DOTALL)[1]
    snippet = re.search(rf"<!-- {format}\b.*?-->\n```python\n(.*?)```", text, re.DOTALL)[1]
    picture = folder / "corpus" / "class 2" / "002.png"
    shutil.copy(picture, tmp_path / "new.png")
    (tmp_path / "snippet.py").write_text(first + snippet)
    monkeypatch.chdir(tmp_path)
    said = runpy.run_path("snippet.py")
    answer = predict([str(picture)], folder / "store", head_id, PredictOptions(top=3))[0]
    found = dict(zip(said["labels"], said["probabilities"][0].tolist(), strict=True))
    assert found == pytest.approx(dict(answer.top), abs=1e-3)
    assert max(found, key=found.get) == answer.label


def test_onnx_of_a_backbone_whose_normalisation_captures_constants(digits, tmp_path):
    pytest.importorskip("tf2onnx")
    weights = str(seeded.weights("VGG16", tmp_path, input_shape=(SIDE, SIDE, 3)))
    corpus = tmp_path / "corpus"
    for name in ("class 0", "class 1"):
        shutil.copytree(digits[0] / "corpus" / name, corpus / name)
    options = EmbedOptions("VGG16", weights, layer="block2_pool", input_size=SIDE)
    embed(str(corpus), tmp_path / "store", options)
    head_id = train_head(tmp_path / "store", TrainOptions("svm"))["head_id"]
    done = export(tmp_path / "store", tmp_path / "out", ExportOptions("onnx"), head_id)
    assert 0 < done["parity"]["max_difference"] < 1e-3


def test_the_command_prints_one_object(digits, tmp_path, monkeypatch, capsys):
    folder, head_id = digits
    arguments = ["export", "--store", folder / "store", "--format", "keras", "--to", tmp_path / "out", "--json"]
    monkeypatch.setattr(sys, "argv", ["penult", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["head_id"] == head_id and told["classes"] == 3 and told["input_size"] == SIDE
    assert told["parity"]["max_difference"] < 1e-3 and told["parity"]["batch_1_against_n"] < 1e-5
    assert told["labels"] == str(tmp_path / "out" / "labels.txt")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda out: out[:, ::-1], "differs from the head on stored features"),
        (lambda out: out + np.float32(2e-3), "differs from the head on stored features"),
        (lambda out: out * np.float32("nan"), "differs from the head on stored features"),
        (lambda out: out if len(out) > 1 else out + np.float32(2e-3), "one image at a time"),
        (lambda out: out[:, :2], "Expected: probabilities float32"),
        (lambda out: 1 / 0, "division by zero"),
    ],
)
def test_a_model_that_differs_is_not_kept(fault, said, digits, tmp_path, monkeypatch):
    folder, head_id = digits
    row = FORMATS["keras"]

    def faulty(path):
        run = row.load(path)
        return lambda pixels: fault(run(pixels))

    monkeypatch.setitem(FORMATS, "keras", row._replace(load=faulty))
    with pytest.raises(EngineError, match=said):
        export(folder / "store", tmp_path / "out", ExportOptions("keras"), head_id)
    assert not list(tmp_path.iterdir())


def test_pictures_that_are_gone_or_changed_are_passed_over(moved, tmp_path):
    store, corpus, head_id = moved
    pictures = sorted(corpus.rglob("*.png"))
    kept = {path: path.read_bytes() for path in pictures}
    try:
        for path in pictures[5:]:
            path.unlink()
        shutil.copy(pictures[0], pictures[1])
        assert export(store, tmp_path / "out", ExportOptions("keras"), head_id)["parity"]["pictures"] == 4
        for path in pictures[:5]:
            path.unlink()
        with pytest.raises(SourceError, match="None of the images of efficientnet-lite0-"):
            export(store, tmp_path / "other", ExportOptions("keras"), head_id)
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


def test_what_cannot_be_exported_is_refused_at_once(digits, tmp_path, monkeypatch):
    folder, head_id = digits
    monkeypatch.setitem(sys.modules, "keras", None)  # nothing heavy has begun
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there exists already"):
        export(folder / "store", tmp_path / "there", ExportOptions("keras"), head_id)
    with pytest.raises(UsageError, match=r"Expected: format keras, saved_model, onnx, openvino, litert\. Got: 'h5'"):
        export(folder / "store", tmp_path / "out", ExportOptions("h5"), head_id)
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(packages=("no_such_package",)))
    with pytest.raises(EngineError, match=r"needs no_such_package: run `pip install 'penult\[export\]'`"):
        export(folder / "store", tmp_path / "out", ExportOptions("onnx"), head_id)


def test_neighbours_are_refused(digits, tmp_path):
    folder, _ = digits
    head_id = train_head(folder / "store", TrainOptions("knn"))["head_id"]
    with pytest.raises(HeadError, match="train another, such as logreg"):
        export(folder / "store", tmp_path / "out", ExportOptions("keras"), head_id)
    shutil.rmtree(FeatureStore(folder / "store").run_folder(head_id))


@pytest.mark.parametrize(
    ("precision", "classes", "error", "said"),
    [
        ("bf16", ("a", "b", "c"), SpecMismatch, "computes in f32, fake-.* was computed in bf16"),
        ("f32", ("a", "b\nb", "c"), HeadError, r"a class per line, and the name of 'b\\nb'"),
    ],
)
def test_features_and_labels_that_a_model_cannot_serve(precision, classes, error, said, tmp_path):
    store = FeatureStore.create(tmp_path / "store")
    spec = replace(builders.SPEC, precision=precision)
    feature_set = builders.commit(store, "run", builders.pictures(range(12)), spec)
    X = np.stack([builders.vector(hashlib.sha256(b"%d" % i).digest()) for i in range(12)])
    head = registry.fit(HeadSpec("ncm"), X, np.array([classes[i % 3] for i in range(12)]))
    artifact.save(head, store.run_folder("h"), {"feature_set": feature_set, "fingerprint": spec.fingerprint()})
    with pytest.raises(error, match=said):
        export(store.path, tmp_path / "out", ExportOptions("keras"), "h")


def test_a_head_that_does_not_tell_its_features(tmp_path):
    store = FeatureStore.create(tmp_path / "store")
    builders.commit(store, "run", builders.pictures(range(12)))
    X = np.stack([builders.vector(hashlib.sha256(b"%d" % i).digest()) for i in range(12)])
    artifact.save(registry.fit(HeadSpec("ncm"), X, np.array([*"abc"] * 4)), store.run_folder("h"), {"feature_set": "x"})
    for use in (
        lambda: export(store.path, tmp_path / "out", ExportOptions("keras"), "h"),
        lambda: predict(["x.png"], store.path, "h"),
    ):
        with pytest.raises(StoreCorrupt, match="to tell its fingerprint"):
            use()
