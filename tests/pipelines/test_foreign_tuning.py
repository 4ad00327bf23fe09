"""Networks that users added as files of Keras: fine-tuned, and used as every fine-tuned backbone is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import json_of, penult
from conftest import ROOT
from featurestore.errors import BackboneError
from featurestore.store import FeatureStore
from heads.backend import import_keras
from pipelines.backbones import PUBLISHED, addition, finetuned, foreign, graphs, networks
from pipelines.backbones.base import Normalization
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import open_engine
from pipelines.backbones.table import Tap
from pipelines.embedding import worker

ZOO = ROOT / "tests" / "golden" / "models"
SIDE, CROP_RATIO = 64, 0.875
MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))


def draw_pictures(folder: Path, count: int = 60) -> Path:
    """Smooth noise in two classes, of which one has stripes."""
    for number in range(count):
        draw = np.random.default_rng(number)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse, int) + (number % 2) * 25 * (np.arange(90) // 3 % 2)[None, :, None]
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return folder


def as_the_network_takes_it(picture: Path) -> np.ndarray:
    """The spec's resize, crop and normalisation, by Pillow and numpy."""
    image, side = Image.open(picture), int(SIDE / CROP_RATIO)
    scale = side / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    square = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return (square / 255 - MEAN) / STD


def trained(folder: Path, file: str, spec: Path | None = None, corpus: Path | None = None) -> Path:
    """A store with a network, features of drawn pictures, and a head on them."""
    store = folder / "store"
    corpus = corpus or draw_pictures(folder / "corpus")
    toml = folder / "spec.toml"
    text = (spec or ZOO / "net.toml").read_text()
    output = 'output = "features"\n' if Path(file).suffix in (".keras", ".h5") else ""
    toml.write_text(output + text.replace('"ref.', f'"{ZOO}/ref.'))
    for call in (
        ("backbones", "add", "mine", ZOO / file, "--spec", toml),
        ("embed", corpus, "--backbone", "mine", "--dtype", "float32"),
        ("train", "--head", "logreg"),
    ):
        done = penult(*call, "--store", store)
        assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module", params=["net.keras", "net.h5"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store with a fine-tuned network, and what the fine-tuning said."""
    store = trained(tmp_path_factory.mktemp("tuned"), request.param)
    call = ("finetune", "--unfreeze-from", "features", "--epochs", "4", "--learning-rate", "0.003")
    return store, json_of(penult(*call, "--store", store, "--json"))


def features_of_keras(store: Path, tap: Tap, pictures: list[Path]) -> np.ndarray:
    """The pooled features of the kept model as Keras loads it, with the weights of a tap."""
    keras = import_keras()
    with tap.network.model_file() as file:  # type: ignore[union-attr]
        network = keras.models.load_model(file, compile=False)
    part = keras.Model(network.inputs[0], network.get_layer("features").output)
    if tap.weights != PUBLISHED:
        part.load_weights(tap.weights)
    given = np.stack([as_the_network_takes_it(path) for path in pictures])
    return np.asarray(part(given, training=False)).mean(axis=(1, 2))


def test_it_learns_and_its_features_are_what_keras_gives(tuned: tuple[Path, dict[str, Any]]) -> None:
    store, told = tuned
    losses = [row["loss"] for row in told["history"]]
    assert losses[-1] < losses[0] and told["best_epoch"] > 0, told
    opened = FeatureStore(store)
    frozen, fresh = foreign.find(store, "mine"), finetuned.find(opened, told["backbone"])
    assert fresh.preprocessing == frozen.preprocessing == opened.spec(told["feature_set"]).preprocessing
    assert fresh.preprocessing.crop == "shortest"

    pictures = sorted((store.parent / "corpus").rglob("*.png"))[:8]
    pictures.sort(key=lambda path: hashlib.sha256(path.read_bytes()).digest())  # the order of a store
    keys = np.array([hashlib.sha256(path.read_bytes()).digest() for path in pictures])
    made = {}
    for tap in (frozen, fresh):
        (name,) = (name for name in opened.sets() if opened.spec(name).weights_sha256 == tap.weights_sha256)
        made[name], found = opened.vectors(name, keys)
        assert found.all()
        np.testing.assert_allclose(made[name], features_of_keras(store, tap, pictures), atol=2e-5)
    before, after = made.values()
    assert list(made)[1] == told["feature_set"] and np.abs(before - after).max() > 1e-3


def test_it_is_a_backbone_like_any_other(tuned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    store, told = tuned
    at = ("--store", store)
    new = draw_pictures(tmp_path / "new", 2)
    (answer,) = json_of(penult("predict", new / "a" / "00.png", "--head", told["head_id"], *at, "--json"))
    assert answer["label"] in ("a", "b")
    done = json_of(penult("embed", new, "--backbone", told["backbone"], "--dtype", "float32", *at, "--json"))
    assert done["feature_set"] == told["feature_set"] and done["failed"] == 0

    moved = tmp_path / "moved"
    assert penult("copy", store, moved).returncode == 0
    assert penult("verify", "--store", moved).returncode == 0
    taps = [finetuned.find(FeatureStore(place), told["backbone"]) for place in (store, moved)]
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    by_openvino, elsewhere = (open_engine(tap, EngineOptions())(pixels) for tap in taps)
    np.testing.assert_array_equal(by_openvino, elsewhere)
    by_tensorflow = open_engine(taps[0], EngineOptions("tensorflow"))(pixels)
    np.testing.assert_allclose(by_openvino, by_tensorflow, atol=2e-5)
    for format in ("keras", "onnx"):
        out = json_of(
            penult("export", "--head", told["head_id"], "--format", format, "--to", tmp_path / format, *at, "--json")
        )
        assert out["parity"]["max_difference"] < 1e-5

    (model,) = (moved / "backbones" / "models").glob("*.zip")
    model.write_bytes(model.read_bytes()[:-9])
    worker.engine_for.cache_clear()
    assert penult("verify", "--store", moved).returncode == 1
    assert "`penult backbones add` again" in penult("doctor", "--store", moved).stderr
    refused = penult("predict", "--store", moved, "--head", told["head_id"], new / "b" / "01.png")
    assert refused.returncode == 0, "its features are stored"
    refused = penult("embed", new, "--backbone", told["backbone"], "--store", moved)
    assert refused.returncode == 1 and f"{told['backbone']} was made from a backbone that is gone" in refused.stderr


def test_a_network_that_was_fine_tuned_is_fine_tuned_further(tuned: tuple[Path, dict[str, Any]]) -> None:
    store, told = tuned
    call = ("finetune", "--head", told["head_id"], "--unfreeze-from", "first", "--epochs", "1")
    again = json_of(penult(*call, "--store", store, "--json"))
    first, second = (finetuned.find(FeatureStore(store), name) for name in (told["backbone"], again["backbone"]))
    assert again["before"] == told["after"] and second.registered == first.registered
    assert (first.weights_sha256 != second.weights_sha256) == (again["best_epoch"] > 0)


@pytest.mark.parametrize(("layer", "said"), [("top", "no layer 'top'"), ("gap", "no layer 'gap'"), ("fist", "first")])
def test_only_layers_up_to_the_tapped_one_are_trained(
    tuned: tuple[Path, dict[str, Any]], layer: str, said: str
) -> None:
    (head,) = (run.run_id for run in FeatureStore(tuned[0]).runs() if run.kind == "train")
    refused = penult("finetune", "--head", head, "--unfreeze-from", layer, "--store", tuned[0])
    assert refused.returncode == 2 and said in refused.stderr


def test_specs_of_one_name_and_weights_have_graphs_of_their_own(tuned: tuple[Path, dict[str, Any]]) -> None:
    """A converted graph begins with the normalisation, which the cache's key has to tell."""
    store, told = tuned
    tap = finetuned.find(FeatureStore(store), told["backbone"])
    base = tap.network
    for change in ({"normalization": Normalization((1.0, 2.0, 3.0))}, {"layout": "NCHW"}, {"sha256": "0" * 64}):
        assert graphs.key_of(tap) != graphs.key_of(replace(tap, registered=replace(base, **change)))
    elsewhere = replace(tap, registered=replace(base, folder="/elsewhere"))  # type: ignore[call-arg]
    assert graphs.key_of(tap) == graphs.key_of(elsewhere)


# -- files of Keras with more in them


def odd_network(kind: str) -> Any:
    """A network whose "features" come after another kind of layer."""
    keras = import_keras()
    layers = keras.layers
    pixels = keras.Input(batch_shape=(1 if kind == "batch" else None, SIDE, SIDE, 3), name="pixels")
    seen = pixels
    if kind == "numbers":  # of a variance that penult squares in files of keras.applications, which have its root there
        numbers = layers.Normalization(name="numbers")
        seen = numbers(seen)
        numbers.set_weights([np.float32([0.4, 0.5, 0.6]), np.float32([0.229, 0.224, 0.225]), np.int64(9)])
        numbers.finalize_state()
        seen = layers.Rescaling(2.0, name="twice")(seen)
    seen = layers.Conv2D(8, 8, strides=8, activation="tanh", name="first")(seen)
    if kind == "nested":
        inner = keras.Input((8, 8, 8))
        deep = layers.BatchNormalization(name="level")(layers.Conv2D(8, 3, name="deep")(inner))
        seen = keras.Model(inner, deep, name="inner")(seen)
    if kind == "statistics":
        seen = layers.BatchNormalization(name="level")(seen)
        seen = layers.Dropout(0.5, name="drop")(seen)
    seen = layers.Conv2D(12, 3, strides=2, activation="tanh", name="features")(seen)
    tokens = layers.Reshape((-1, 12), name="tokens")(seen)
    return keras.Model(pixels, layers.Dense(3, name="top")(layers.GlobalAveragePooling1D(name="gap")(tokens)))


ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "numbers": ("first", {}),
    "nested": ("inner", {}),
    "statistics": ("level", {}),
    "tokens": ("features", {"output": "tokens", "pooling": "cls+avg", "prefix_tokens": 1, "l2": True}),
    "colours": ("features", {"channels": "BGR", "pooling": "max"}),
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_keras_knows_is_trained(kind: str, tmp_path: Path) -> None:
    keras = import_keras()
    keras.utils.set_random_seed(5)
    network = odd_network(kind)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # statistics that are not those of any batch here
            layer.set_weights(
                [np.full_like(w, value) for w, value in zip(layer.get_weights(), (1.5, 0.1, 0.3, 2), strict=True)]
            )
    network.save(tmp_path / "odd.keras")
    layer, values = ODD[kind]
    told = {"size": SIDE, "layout": "NHWC", "scale": 1 / 127.5, "mean": [1, 1, 1], "output": "features", **values}
    spec = tmp_path / "odd.toml"
    spec.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    at = ("--store", tmp_path / "store")
    for call in (
        ("backbones", "add", "odd", tmp_path / "odd.keras", "--spec", spec, "--unproved"),
        ("embed", draw_pictures(tmp_path / "corpus", 24), "--backbone", "odd", "--dtype", "float32"),
        ("train", "--head", "logreg"),
    ):
        assert penult(*call, *at).returncode == 0
    done = json_of(penult("finetune", "--unfreeze-from", layer, "--epochs", "1", "--optimizer", "sgd", *at, "--json"))
    tap = finetuned.find(FeatureStore(tmp_path / "store"), done["backbone"])

    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    part = keras.Model(network.inputs[0], network.get_layer(tap.layer).output)
    before = [w.numpy() for w in part.weights]
    part.load_weights(tap.weights)
    moving = [w for w in part.weights if "moving" in w.path or "numbers" in w.path]
    kept = [old for w, old in zip(part.weights, before, strict=True) if any(w is other for other in moving)]
    for now, old in zip(moving, kept, strict=True):
        np.testing.assert_array_equal(now.numpy(), old, "statistics are not trained")
    given = pixels[..., ::-1] if kind == "colours" else pixels
    out = np.asarray(part(given.astype(np.float32) / 127.5 - 1, training=False))
    wanted = {
        "tokens": lambda: np.concatenate([out[:, 0], out[:, 1:].mean(axis=1)], axis=1),
        "colours": lambda: out.max(axis=(1, 2)),
    }.get(kind, lambda: out.mean(axis=(1, 2)))()
    if kind == "tokens":
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(open_engine(tap, EngineOptions())(pixels), wanted, atol=2e-5)
    for format in ("keras", "onnx"):
        out = json_of(penult("export", "--format", format, "--to", tmp_path / format, *at, "--json"))
        assert out["parity"]["max_difference"] < 1e-4


def test_what_takes_one_image_at_a_time_is_not_trained(tmp_path: Path) -> None:
    odd_network("batch").save(tmp_path / "odd.keras")
    spec = tmp_path / "odd.toml"
    spec.write_text(f'size = {SIDE}\nlayout = "NHWC"\noutput = "features"\n')
    added = addition.add(tmp_path / "store", "odd", tmp_path / "odd.keras", spec, unproved=True).backbone
    if added.batch is not None:
        with pytest.raises(BackboneError, match="takes 1 images at once"):
            networks.build(added.tap())
